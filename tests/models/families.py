"""Every model that is served, one entry each: the shared tests run over all of `ENTRIES`.

`test_parity.py` compares logits with a reference, `test_greedy_equality.py` runs prompts through `LLM`,
`test_wrong_folders.py` damages the folders. How to add one: docs/adding-a-model.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import oracle_internvl, tiny, tiny_internvl, tiny_minicpmv, tiny_text
from tests.oracle import Reference
from tests.oracle_minicpmv import MiniCPMVReference
from tests.oracle_qwen2_5_vl import Qwen2_5_VLReference
from tests.oracle_text import TextReference


@dataclass(frozen=True)
class Entry:
    """A model in the shared tests.

    write: makes a tiny checkpoint folder in one of `spellings` (names of tensors and fields; the same weights in each).
    reference: somebody else's implementation of such a folder.
    image, video: what stands for a picture or a clip in a raw prompt, as the model's users write it; None for a
    language model alone.
    in_engine: spellings that are also run through `LLM`, in each of `dtypes`, and damaged; none for a variant that
    differs from another entry in nothing that these tests see.
    """

    write: Callable[[Path, str], Path]
    reference: Callable[[Path], Reference]
    image: str | None
    video: str | None
    spellings: tuple[str, ...]
    in_engine: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ("float32",)


def qwen2_5_vl(*spellings: tiny.Layout, in_engine: tuple[str, ...] = (), **options: Any) -> Entry:
    """A tiny Qwen2.5-VL; `options` are those of its `write_checkpoint`."""
    return Entry(
        write=lambda folder, spelling: tiny.write_checkpoint(folder, layout=spelling, **options),
        reference=Qwen2_5_VLReference,
        image="<|vision_start|><|image_pad|><|vision_end|>",
        video="<|vision_start|><|video_pad|><|vision_end|>",
        spellings=spellings,
        in_engine=in_engine,
        dtypes=("float32", "bfloat16"),
    )


def internvl(text: tiny_text.Text, vision: tiny_internvl.Vision, *, in_engine: tuple[str, ...] = ()) -> Entry:
    """A tiny InternVL over one of its language models (InternLM2 has no native form) and towers."""
    return Entry(
        write=lambda folder, spelling: tiny_internvl.write_checkpoint(folder, text, vision, spelling),
        reference=lambda folder: oracle_internvl.reference(text, vision),
        image="<image>",
        video="<video>",
        spellings=("original",) if text == "internlm2" else ("original", "native", "native-memory"),
        in_engine=in_engine,
    )


def minicpmv(version: tiny_minicpmv.Version) -> Entry:
    """A tiny MiniCPM-V."""
    return Entry(
        write=lambda folder, spelling: tiny_minicpmv.write_checkpoint(folder, version),
        reference=lambda folder: MiniCPMVReference(version),
        image="(<image>./</image>)",
        video="(<video>./</video>)",
        spellings=("released",),
        in_engine=("released",),
    )


def language_model(text: tiny_text.Text, *, in_engine: bool = False, **changes: Any) -> Entry:
    """A tiny language model alone; `changes` are fields of its config.json."""
    return Entry(
        write=lambda folder, spelling: tiny_text.write_checkpoint(folder, text, **changes),
        reference=lambda folder: TextReference(folder, text),
        image=None,
        video=None,
        spellings=("released",),
        in_engine=("released",) if in_engine else (),
    )


ENTRIES: dict[str, Entry] = {
    "qwen2_5_vl": qwen2_5_vl("flat", "nested", in_engine=("flat",), kv_heads=2, tied=True),
    "qwen2_5_vl-kv1-untied": qwen2_5_vl("flat", "nested", kv_heads=1, tied=False, seed=1),
    "qwen2_5_vl-kv4-shards": qwen2_5_vl("flat", kv_heads=4, tied=True, seed=2, num_shards=3),
    "qwen2_5_vl-shortened": qwen2_5_vl("shortened", kv_heads=2, tied=False, seed=5),
    "qwen2_5_vl-yarn": qwen2_5_vl("flat", "nested", kv_heads=2, tied=False, seed=6, rope_scaling=tiny.YARN),
    "internvl-qwen2-300M": internvl("qwen2", "300M", in_engine=("original", "native")),
    "internvl-qwen2-6B": internvl("qwen2", "6B"),
    "internvl-internlm2-300M": internvl("internlm2", "300M"),
    "internvl-internlm2-6B": internvl("internlm2", "6B"),
    "internvl-llama-300M": internvl("llama", "300M"),
    "internvl-llama-6B": internvl("llama", "6B"),
    "internvl-phi3-300M": internvl("phi3", "300M"),
    "internvl-phi3-6B": internvl("phi3", "6B"),
    "internvl-qwen3-300M": internvl("qwen3", "300M"),
    "internvl-qwen3-6B": internvl("qwen3", "6B"),
    "minicpmv-2.6": minicpmv("2.6"),
    "minicpmv-2.5": minicpmv("2.5"),
    "minicpmv-2.0": minicpmv("2.0"),
    "text-gemma3": language_model("gemma3", in_engine=True),
    "text-granite": language_model(
        "granite", embedding_multiplier=3.0, attention_multiplier=0.4, residual_multiplier=0.6, logits_scaling=2.5
    ),
    "text-llama": language_model("llama", tied=True),
    "text-internlm2": language_model("internlm2"),
    "text-minicpm": language_model("minicpm"),
    "text-mistral-window": language_model("mistral", sliding_window=12),
    "text-phi3-window": language_model("phi3", sliding_window=9),
    "text-qwen2-window": language_model(
        "qwen2", in_engine=True, use_sliding_window=True, sliding_window=10, max_window_layers=1
    ),
    "text-qwen3-window": language_model(
        "qwen3", use_sliding_window=True, sliding_window=7, layer_types=["sliding_attention", "full_attention"]
    ),
}
