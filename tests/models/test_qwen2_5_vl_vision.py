"""The vision part's configuration and layout: spellings, refusals, windows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import tiny
from trifocal.errors import ConfigError
from trifocal.model_spec import ModelSpec
from trifocal.models.loader import load_model
from trifocal.models.qwen2_5_vl.config import VisionConfig
from trifocal.models.qwen2_5_vl.windows import pack


def spec_of(folder: Path, **vision: Any) -> ModelSpec:
    tiny.write_checkpoint(folder, tokenizer=False)
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"] = vision
    (folder / "config.json").write_text(json.dumps(config))
    return ModelSpec.from_checkpoint(str(folder))


def test_short_file_of_the_32b(tmp_path: Path) -> None:
    """Only these fields are in the released file."""
    spec = spec_of(
        tmp_path, hidden_size=1280, in_chans=3, intermediate_size=3456, out_hidden_size=64, spatial_patch_size=14,
        tokens_per_second=2,
    )  # fmt: skip
    config = VisionConfig.from_spec(spec)
    assert (config.depth, config.num_heads, config.head_dim, config.intermediate_size) == (32, 16, 80, 3456)
    assert (config.window_groups, config.full_attention_blocks) == (4, (7, 15, 23, 31))
    assert (config.patch_bytes, config.merge_unit) == (1176, 4)
    assert config.image_mean == tiny.IMAGE_MEAN and config.image_std == tiny.IMAGE_STD


def test_defaults_are_the_released_towers(tmp_path: Path) -> None:
    """hidden_size 1280, not the 3584 that transformers' class has for a default; no normalisation either."""
    spec = spec_of(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"patch_size": 14}')
    spec = ModelSpec.from_checkpoint(spec.path)
    config = VisionConfig.from_spec(spec)
    assert (config.hidden_size, config.out_hidden_size, config.in_channels) == (1280, 64, 3)
    assert config.image_mean == pytest.approx(tiny.IMAGE_MEAN) and config.rescale_factor == 1 / 255


@pytest.mark.parametrize(
    ("vision", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"hidden_size": 30, "num_heads": 4}, "num_heads"),
        ({"window_size": 14}, "window_size"),
        ({"out_hidden_size": 65}, "out_hidden_size 65"),
        ({"in_channels": 1}, "in_channels must be 3"),
    ],
)
def test_refusals(tmp_path: Path, vision: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VisionConfig.from_spec(spec_of(tmp_path, **vision))


def test_windows_of_one_picture() -> None:
    """Golden values of the reference: 6 x 10 tokens, windows of 4 x 4."""
    layout = pack([(1, 12, 20)], merge=2, window=4)
    first = [0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 23, 30, 31, 32, 33, 4, 5, 6, 7]
    assert layout.order[:20].tolist() == first
    assert np.cumsum(layout.window_lengths).tolist() == [64, 128, 160, 192, 224, 240]
    assert layout.frame_lengths == [240]
    assert layout.positions[:6].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [0, 2], [0, 3]]


@pytest.mark.parametrize("grids", [[(1, 16, 16)], [(3, 10, 14)], [(1, 2, 2), (2, 18, 6), (1, 8, 34)]])
def test_layout_equals_the_reference(grids: list[tuple[int, int, int]]) -> None:
    from transformers.vision_utils import get_vision_cu_seqlens, get_vision_position_ids, get_vision_window_index

    layout = pack(grids, merge=2, window=4)
    grid = torch.tensor(grids)
    order, windows = get_vision_window_index(grid, spatial_merge_size=2, window_size=112, patch_size=14)
    assert layout.order.tolist() == order.tolist()
    assert np.cumsum(layout.window_lengths).tolist() == windows[1:].tolist()
    assert np.cumsum(layout.frame_lengths).tolist() == get_vision_cu_seqlens(grid)[1:].tolist()
    assert layout.positions.tolist() == get_vision_position_ids(grid, 2).tolist()


@pytest.mark.parametrize(("wanted", "grid"), [(1, (1, 2, 2)), (7, (1, 4, 6)), (256, (1, 32, 32))])
def test_dummy_item(tmp_path: Path, wanted: int, grid: tuple[int, int, int]) -> None:
    spec = ModelSpec.from_checkpoint(str(tiny.write_checkpoint(tmp_path, tokenizer=False)))
    model = load_model(spec, dtype=torch.float32, device=torch.device("cpu"), load_format="auto", seed=0)
    item = model.dummy_item(wanted)
    assert item.grid == grid
    assert model.encode([item])[0].shape == (item.span.num_embeds, tiny.HIDDEN)
    assert item.span.num_embeds <= wanted
