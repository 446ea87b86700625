"""InternVL against transformers' native class: every decoder, both vision towers, all spellings of the weights."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import tiny_internvl as tiny
from tests.oracle import Runner, Sample, load_ours, relative_error
from trifocal.model_spec import ModelSpec
from trifocal.models.loader import load_model
from trifocal.multimodal.patches import PatchLayout
from trifocal.types import MediaItem, Span

TOLERANCE = 1e-4
IDS = tiny.token_ids()
CASES: dict[str, tuple[tiny.Text, tiny.Vision]] = {
    "qwen2-300M": ("qwen2", "300M"),
    "internlm2-6B": ("internlm2", "6B"),
    "llama-300M": ("llama", "300M"),
    "phi3-6B": ("phi3", "6B"),
    "qwen3-300M": ("qwen3", "300M"),
}


def reference(text: tiny.Text, vision: tiny.Vision, *, tied: bool = False, seed: int = 0) -> torch.nn.Module:
    """transformers' model with the weights of `tiny.tensors`."""
    from transformers import InternVLConfig, InternVLForConditionalGeneration

    settings = tiny.config("llama" if text == "internlm2" else text, vision, "native", tied=tied)
    if text == "internlm2":
        settings["text_config"]["rope_scaling"] = tiny.text_config(text)["rope_scaling"]
    model = InternVLForConditionalGeneration(InternVLConfig(**settings, attn_implementation="eager")).eval()
    weights = tiny.renamed(tiny.tensors(text, vision, tied=tied, seed=seed), text, "native-memory")
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and (not missing or (tied and missing == ["lm_head.weight"])), (missing, unexpected)
    model.tie_weights()
    return model


def sample(seed: int, *tiles: int) -> Sample:
    """Text, then pictures of so many tiles with text behind each."""
    rng = np.random.default_rng(seed)
    made = Sample()

    def add(ids: list[int]) -> None:
        start = len(made.token_ids)
        made.token_ids += ids
        made.columns += [(start + index,) for index in range(len(ids))]

    add(rng.integers(0, 256, 5).tolist())
    for count in tiles:
        add([IDS["<img>"]])
        frames = rng.integers(0, 256, (count, tiny.TILE, tiny.TILE, 3), dtype=np.uint8)
        rows = PatchLayout(merge=1, temporal=1).patchify(frames)
        span = Span(len(made.token_ids), count * tiny.TOKENS_PER_TILE)
        made.items.append(MediaItem("image", rng.bytes(16), span, (count, 4, 4), rows))
        add([IDS["<IMG_CONTEXT>"]] * span.length + [IDS["</img>"], *rng.integers(0, 256, 6).tolist()])
    return made


def tiles_of(items: list[MediaItem]) -> Tensor:
    """float32 [tiles, 3, TILE, TILE], normalised as transformers' PIL processor does."""
    rows = np.concatenate([np.asarray(item.pixels) for item in items])
    side, patch = tiny.TILE // tiny.PATCH, tiny.PATCH
    patches = rows.reshape(-1, side, side, 3, patch, patch)
    tiles = patches.transpose(0, 3, 1, 4, 2, 5).reshape(-1, 3, tiny.TILE, tiny.TILE)
    scaled = (tiles.astype(np.float64) * (1 / 255)).astype(np.float32)
    mean, std = (np.array(each, np.float32)[:, None, None] for each in (tiny.IMAGE_MEAN, tiny.IMAGE_STD))
    return torch.from_numpy((scaled - mean) / std)


@torch.inference_mode()
def reference_logits(model: torch.nn.Module, made: Sample) -> Tensor:
    inputs: dict[str, Any] = {"pixel_values": tiles_of(made.items)} if made.items else {}
    return model(input_ids=torch.tensor([made.token_ids]), use_cache=False, **inputs).logits[0]


SAMPLES = {"text": (1,), "image": (2, 6), "images": (3, 1, 10, 2)}


@cache
def oracle(name: str) -> list[Tensor]:
    model = reference(*CASES[name])
    return [reference_logits(model, sample(*arguments)) for arguments in _samples(name)]


def _samples(name: str) -> list[tuple[int, ...]]:
    # Phi3's reference changes its frequencies at 32 tokens; ours goes by the context, which is longer.
    return [arguments for arguments in SAMPLES.values() if not (name.startswith("phi3") and arguments == (1,))]


def layouts(name: str) -> list[tiny.Format]:
    """InternLM2 has no native form."""
    return ["original"] if name.startswith("internlm2") else ["original", "native", "native-memory"]


@pytest.mark.parametrize(("name", "layout"), [(name, layout) for name in CASES for layout in layouts(name)])
def test_logits(tmp_path: Path, name: str, layout: tiny.Format) -> None:
    model = load_ours(tiny.write_checkpoint(tmp_path, *CASES[name], layout))
    for arguments, expected in zip(_samples(name), oracle(name), strict=True):
        made = sample(*arguments)
        ours = Runner(model, kv_heads=tiny.KV_HEADS).logits([made])[0]
        assert ours.shape == (len(made.token_ids), tiny.VOCAB)
        assert relative_error(ours, expected) < TOLERANCE


@pytest.mark.parametrize("name", ["internlm2-6B", "phi3-6B"])
def test_chunks_and_neighbours(tmp_path: Path, name: str) -> None:
    """In chunks of 7 tokens, several sequences in a step: the same logits."""
    model = load_ours(tiny.write_checkpoint(tmp_path, *CASES[name]))
    made = [sample(*arguments) for arguments in _samples(name)]
    outputs = Runner(model, kv_heads=tiny.KV_HEADS).logits(made, chunk=7)
    assert max(relative_error(ours, expected) for ours, expected in zip(outputs, oracle(name), strict=True)) < TOLERANCE


@pytest.mark.parametrize("layout", ["original", "native"])
def test_tied_head(tmp_path: Path, layout: tiny.Format) -> None:
    """Without a head in the files the embedding serves, unless config.json says that there must be one."""
    model = load_ours(tiny.write_checkpoint(tmp_path, layout=layout, tied=True))
    made = sample(2, 3)
    expected = reference_logits(reference("qwen2", "300M", tied=True), made)
    assert relative_error(Runner(model, kv_heads=tiny.KV_HEADS).logits([made])[0], expected) < TOLERANCE


def test_short_context_takes_the_short_factors(tmp_path: Path) -> None:
    """A context within LongRoPE's original one: the reference's frequencies for short sequences."""
    folder = tiny.write_checkpoint(tmp_path, *CASES["phi3-6B"])
    spec = ModelSpec.from_checkpoint(str(folder)).for_context(tiny.LONGROPE_ORIGINAL)
    made = sample(4, 1)
    assert len(made.token_ids) <= tiny.LONGROPE_ORIGINAL
    ours = load_model(spec, dtype=torch.float32, device=torch.device("cpu"), load_format="auto", seed=0)
    expected = reference_logits(reference(*CASES["phi3-6B"]), made)
    assert relative_error(Runner(ours, kv_heads=tiny.KV_HEADS).logits([made])[0], expected) < TOLERANCE
    long = Runner(load_ours(folder), kv_heads=tiny.KV_HEADS).logits([made])[0]
    assert relative_error(long, expected) > 10 * TOLERANCE


@torch.inference_mode()
def test_other_grid_resizes_the_position_table(tmp_path: Path) -> None:
    """Tiles of 84 pixels on a table for 56."""
    model = load_ours(tiny.write_checkpoint(tmp_path, tile=84))
    frames = np.random.default_rng(1).integers(0, 256, (2, 84, 84, 3), dtype=np.uint8)
    item = MediaItem("image", bytes(16), Span(0, 18), (2, 6, 6), PatchLayout(merge=1, temporal=1).patchify(frames))
    theirs = reference("qwen2", "300M")
    pixels = model.visual.patch_embed.normalize(torch.from_numpy(item.pixels))
    pixels = pixels.view(2, 6, 6, 3, 14, 14).permute(0, 3, 1, 4, 2, 5).reshape(2, 3, 84, 84)
    expected = theirs.model.get_image_features(pixels).pooler_output.flatten(0, 1)
    assert relative_error(model.encode([item])[0], expected) < TOLERANCE


@torch.inference_mode()
def test_items_are_encoded_in_bounded_batches(tmp_path: Path) -> None:
    """19 tiles in three batches equal the items alone; normalisation is exact."""
    model = load_ours(tiny.write_checkpoint(tmp_path))
    items = sample(7, 3, 11, 5).items
    together, alone = model.encode(items), [model.encode([item])[0] for item in items]
    assert [len(part) for part in together] == [item.span.length for item in items]
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(together, alone, strict=True))
    ours = model.visual.patch_embed.normalize(torch.from_numpy(np.asarray(items[0].pixels)))
    shuffled = ours.view(3, 4, 4, 3, 14, 14).permute(0, 3, 1, 4, 2, 5).reshape(3, 3, 56, 56)
    assert torch.equal(shuffled, tiles_of(items[:1]))
    dummy = model.dummy_item(9)
    assert dummy.grid == (2, 4, 4) and model.encode([dummy])[0].shape == (dummy.span.num_embeds, tiny.HIDDEN)


@pytest.mark.parametrize(
    "part",
    [
        "visual.layers.1.ls1", "visual.layers.0.attn.q_norm.weight", "visual.position_embedding",
        "visual.class_embedding", "visual.layers.2.norm2.weight", "mlp1.0.weight",
        "language_model.layers.1.self_attn.qkv_proj.weight",
    ],
)  # fmt: skip
def test_parity_notices_a_wrong_weight(tmp_path: Path, part: str) -> None:
    model = load_ours(tiny.write_checkpoint(tmp_path, *CASES["internlm2-6B"]))
    model.get_parameter(part).data.flatten()[-1] += 0.1
    ours = Runner(model, kv_heads=tiny.KV_HEADS).logits([sample(*SAMPLES["image"])])[0]
    assert relative_error(ours, oracle("internlm2-6B")[1]) > 2 * TOLERANCE


def test_pixel_shuffle_v1_lays_tokens_column_by_column(tmp_path: Path) -> None:
    import json

    folder = tiny.write_checkpoint(tmp_path)
    item = sample(2, 1).items[0]
    second = load_ours(folder).encode([item])[0]
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "ps_version": "v1"}))
    first = load_ours(folder).encode([item])[0]
    assert torch.allclose(first.view(2, 2, -1).transpose(0, 1).flatten(0, 1), second, atol=1e-5)
