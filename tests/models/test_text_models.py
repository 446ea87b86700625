"""What the decoders refuse, and LongRoPE's choice; their numbers are compared in test_parity."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import tiny_internvl as tiny
from tests.oracle import load_ours
from trifocal.config import EngineArgs, resolve
from trifocal.errors import ConfigError
from trifocal.layers.rotary import inverse_frequencies
from trifocal.model_spec import ModelSpec, rope_config
from trifocal.models.internlm2 import InternLM2Decoder
from trifocal.models.llama import LlamaDecoder
from trifocal.models.phi3 import Phi3Decoder
from trifocal.models.qwen3 import Qwen3Decoder


@pytest.mark.parametrize(
    ("text", "decoder", "change", "message"),
    [
        ("llama", LlamaDecoder, {"attention_bias": True}, "attention_bias in a Llama decoder"),
        ("internlm2", InternLM2Decoder, {"bias": True}, "bias in a Llama decoder"),
        ("phi3", Phi3Decoder, {"sliding_window": 2047}, "sliding_window 2047"),
        ("phi3", Phi3Decoder, {"partial_rotary_factor": 0.75}, "partial_rotary_factor"),
        ("qwen3", Qwen3Decoder, {"use_sliding_window": True}, "use_sliding_window"),
    ],
)
def test_refusals(tmp_path: Path, text: tiny.Text, decoder: Any, change: dict[str, Any], message: str) -> None:
    folder = tiny.write_checkpoint(tmp_path, text)
    settings = json.loads((folder / "config.json").read_text())
    settings["llm_config"] |= change
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match=message):
        decoder(ModelSpec.from_checkpoint(str(folder)).text)


@pytest.mark.parametrize(("text", "fused"), [("internlm2", "attention.wqkv"), ("phi3", "mlp.gate_up_proj")])
def test_fused_tensor_of_another_shape(tmp_path: Path, text: tiny.Text, fused: str) -> None:
    folder = tiny.write_checkpoint(tmp_path, text)
    weights = load_file(folder / "model.safetensors")
    name = f"language_model.model.layers.1.{fused}.weight"
    save_file({**weights, name: weights[name][1:].contiguous()}, folder / "model.safetensors")
    with pytest.raises(ConfigError, match=r"tensor \S+ has \d+ rows") as caught:
        load_ours(folder)
    assert fused.rpartition(".")[2] in str(caught.value) and "\n" not in str(caught.value)


def test_longrope_goes_by_the_context(tmp_path: Path) -> None:
    """As in vLLM: --max-model-len within the original context gives the short factors; the scale is the same."""
    folder = str(tiny.write_checkpoint(tmp_path, "phi3"))
    scaling = tiny.text_config("phi3")["rope_scaling"]
    plain = 1.0 / 10000.0 ** (torch.arange(0, tiny.HEAD_DIM, 2) / tiny.HEAD_DIM)
    scales = set()
    for length, name in ((None, "long_factor"), (33, "long_factor"), (32, "short_factor")):
        rope = resolve(EngineArgs(model=folder, max_model_len=length)).spec.text.rope
        frequencies, scale = inverse_frequencies(rope, tiny.HEAD_DIM)
        torch.testing.assert_close(frequencies, plain / torch.tensor(scaling[name]))
        scales.add(scale)
    (scale,) = scales
    assert scale == pytest.approx((1 + 6 / 5) ** 0.5)  # sqrt(1 + ln(2048 / 32) / ln(32))


def test_older_name_of_longrope() -> None:
    """Phi-3's first files: `su`, and no factor, which is the ratio of the two contexts."""
    rope = rope_config(
        {"max_position_embeddings": 131072, "original_max_position_embeddings": 4096, "rope_scaling": {"type": "su"}}
    )
    assert (rope.kind, rope.factor, rope.original_max_position_embeddings) == ("longrope", 32.0, 4096)
