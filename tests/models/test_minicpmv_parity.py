"""MiniCPM-V 2.6, 2.5 and 2.0 against a reference composed of transformers' and torch's parts: see oracle_minicpmv."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from torch import Tensor

from tests import oracle_minicpmv as oracle
from tests import tiny_minicpmv as tiny
from tests.oracle import load_ours, new_cache, relative_error
from trifocal.attention.base import AttentionBatch
from trifocal.attention.reference import ReferenceAttention
from trifocal.model_spec import ModelSpec
from trifocal.models.minicpmv.processor import MiniCPMVProcessor
from trifocal.models.minicpmv.vision import position_ids
from trifocal.multimodal.media import Image, Video
from trifocal.tokenizer import Tokenizer
from trifocal.types import ConfigError, MediaItem, Prompt

TOLERANCE = 1e-4
# (width, height): 2 x 1 and 3 x 3 slices, none, and a strip of one row of patches.
SIZES = [(220, 110), (330, 340), (90, 120), (900, 10)]


@dataclass
class Case:
    """One checkpoint in both hands."""

    version: tiny.Version
    ours: Any
    processor: MiniCPMVProcessor


@pytest.fixture(scope="module", params=tiny.VERSIONS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tiny.write_checkpoint(tmp_path_factory.mktemp("minicpmv"), request.param)
    processor = MiniCPMVProcessor(ModelSpec.from_checkpoint(str(folder)), Tokenizer.from_folder(str(folder)))
    return Case(request.param, load_ours(folder), processor)


def pictures() -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for width, height in SIZES]


@torch.inference_mode()
def our_logits(model: Any, prompt: Prompt, chunk: int) -> Tensor:
    """[num_tokens, vocab], `chunk` tokens a step."""
    embeds = model.embed(torch.tensor(prompt.token_ids))
    for item, encoded in zip(prompt.media, model.encode(prompt.media) if prompt.media else [], strict=True):
        rows = item.span.offset + np.flatnonzero(item.span.is_embed)
        embeds[torch.from_numpy(rows)] = encoded
    total, block = len(prompt.token_ids), 16
    kv_heads = model.language_model.config.num_kv_heads
    attention = ReferenceAttention(new_cache(model, (tiny.LAYERS, kv_heads, tiny.HEAD_DIM), -(-total // block), block))
    table = torch.arange(-(-total // block))[None]
    parts = []
    for start in range(0, total, chunk):
        end = min(start + chunk, total)
        where = torch.arange(start, end)
        attention.begin(AttentionBatch(where, table, [end - start], [end]))
        parts.append(model.logits(model(embeds[start:end], where[None], attention)))
    return torch.cat(parts)


def flags(prompt: Prompt) -> list[bool]:
    marked = [False] * len(prompt.token_ids)
    for item in prompt.media:
        assert item.span.is_embed is not None
        marked[item.span.offset : item.span.end] = item.span.is_embed
    return marked


@pytest.mark.parametrize("chunk", [1 << 30, 50])
def test_logits_with_pictures(case: Case, chunk: int) -> None:
    image = tiny.token_ids()["<image>"]
    shown = pictures()
    prompt = case.processor.build([5, image, 6, image, image, 7, 8, image, 9], [Image(each) for each in shown], {})
    expected = [oracle.picture_embeds(case.version, PIL.Image.fromarray(each)) for each in shown]
    reference = oracle.logits(case.version, prompt.token_ids, flags(prompt), expected)
    ours = our_logits(case.ours, prompt, chunk)
    assert ours.dtype == torch.float32 and ours.shape == (len(prompt.token_ids), tiny.VOCAB)
    assert relative_error(ours, reference) < TOLERANCE
    assert reference.argmax(-1).unique().numel() > 20, "a constant answer would prove nothing"


def test_logits_of_text(case: Case) -> None:
    prompt = Prompt(np.random.default_rng(1).integers(0, 300, 60).tolist())
    reference = oracle.logits(case.version, prompt.token_ids, [], [])
    assert relative_error(our_logits(case.ours, prompt, 7), reference) < TOLERANCE


@torch.inference_mode()
def test_items_together_equal_items_alone_and_the_reference(case: Case) -> None:
    """20 slices are more than one pass of the tower takes: passes begin in the midst of an item."""
    shown = pictures()
    image = tiny.token_ids()["<image>"]
    items = case.processor.build([image] * 4, [Image(each) for each in shown], {}).media
    together = case.ours.encode(items)
    for item, encoded, pixels in zip(items, together, shown, strict=True):
        reference = oracle.picture_embeds(case.version, PIL.Image.fromarray(pixels))
        assert encoded.shape == (item.span.num_embeds, tiny.HIDDEN)
        assert relative_error(encoded, reference) < TOLERANCE
        assert relative_error(case.ours.encode([item])[0], reference) < TOLERANCE


@torch.inference_mode()
def test_clip_is_its_frames(case: Case) -> None:
    frames = np.random.default_rng(9).integers(0, 256, (3, 120, 200, 3), dtype=np.uint8)
    item = case.processor.build([tiny.token_ids()["<slice>"]], [Video(frames, 1.0)], {}).media[0]
    each = [oracle.picture_embeds(case.version, PIL.Image.fromarray(frame), most=2) for frame in frames]
    assert len(each[0]) == 3 * tiny.QUERIES, "frames must be sliced for this test to mean something"
    assert relative_error(case.ours.encode([item])[0], torch.cat(each)) < TOLERANCE


def test_parity_notices_a_wrong_weight(case: Case) -> None:
    """The comparison can fail: one norm weight changed by 5 % is seen, in each part."""
    image = tiny.token_ids()["<image>"]
    prompt = case.processor.build([5, image, 9], [Image(pictures()[0])], {})
    before = our_logits(case.ours, prompt, 1 << 30)
    parts = (
        "vpm.layers.0.layer_norm2",
        "vpm.post_layernorm",
        "resampler.ln_q",
        "language_model.layers.1.mlp.down_proj",
    )
    for name in parts:
        weight = case.ours.get_submodule(name).weight.data
        weight[3] *= 1.05
        assert relative_error(our_logits(case.ours, prompt, 1 << 30), before) > 5 * TOLERANCE, name
        weight[3] /= 1.05


# ------------------------------------------------------------------------------------------------- positions

FALLS_SHORT = {  # facts page: these rows fall just short of a cell's edge in float32
    25: {5: 13, 10: 27, 15: 41, 20: 55},
    49: {7: 9, 14: 19, 35: 49, 42: 59},
    50: {5: 6, 10: 13, 15: 20, 20: 27, 30: 41, 40: 55},
    55: {11: 13, 22: 27, 33: 41, 44: 55},
    58: {29: 34},
}


@pytest.mark.parametrize("count", range(1, 71))
def test_position_ids(count: int) -> None:
    cells = [FALLS_SHORT.get(count, {}).get(index, index * 70 // count) for index in range(count)]
    assert position_ids(1, count, 70).tolist() == cells
    assert position_ids(count, 1, 70).tolist() == [cell * 70 for cell in cells]
    assert position_ids(2, count, 70).tolist() == [*cells, *(35 * 70 + cell for cell in cells)]


def test_more_patches_than_cells() -> None:
    ids = position_ids(1, 82, 70)
    assert len(ids) == 82 and ids.max() == 69 and bool((ids.diff() >= 0).all())


# ------------------------------------------------------------------------------------------------- configuration


def test_layers_beyond_the_used_ones_are_left_out(tmp_path: Path) -> None:
    """2.5 and 2.6 may say `drop_vision_last_layer` and still carry the layer."""
    folder = tiny.write_checkpoint(tmp_path)
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "drop_vision_last_layer": True}))
    assert len(load_ours(folder).vpm.layers) == tiny.VISION["num_hidden_layers"] - 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 4.5}, "version 4.5 is not supported; supported: 2.0, 2.5, 2.6"),
        ({"hidden_size": 192}, "hidden_size 192 must be a multiple of 128"),
        ({"query_num": 32}, "image_feature_size 16 differs from query_num 32"),
        ({"vision_config": {"hidden_act": "relu"}}, "hidden_act 'relu'"),
        ({"vision_config": {"num_attention_heads": 5}}, "num_attention_heads 5"),
        ({"version": "2.0"}, "scale_emb must be a positive number"),
    ],
)
def test_refused_configurations(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    folder = tiny.write_checkpoint(tmp_path)
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ConfigError, match=message):
        load_ours(folder)


@pytest.mark.parametrize(("wanted", "slices"), [(1, 1), (40, 2)])
def test_dummy_item(case: Case, wanted: int, slices: int) -> None:
    item: MediaItem = case.ours.dummy_item(wanted)
    assert item.grid == (8, 8, slices)
    assert case.ours.encode([item])[0].shape == (slices * tiny.QUERIES, tiny.HIDDEN)
