"""MiniCPM-V beyond what all models are tested for: positions in the vision tower, what its configuration may say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import tiny_minicpmv as tiny
from tests.oracle import load_ours
from trifocal.errors import ConfigError
from trifocal.models.minicpmv.vision import position_ids

FALLS_SHORT = {  # these rows fall just short of a cell's edge in float32
    25: {5: 13, 10: 27, 15: 41, 20: 55},
    49: {7: 9, 14: 19, 35: 49, 42: 59},
    50: {5: 6, 10: 13, 15: 20, 20: 27, 30: 41, 40: 55},
    55: {11: 13, 22: 27, 33: 41, 44: 55},
    58: {29: 34},
}


def test_position_ids() -> None:
    for count in range(1, 71):
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
        ({"version": "2.0"}, "scale_depth must be a positive number"),
    ],
)
def test_refused_configurations(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    folder = tiny.write_checkpoint(tmp_path)
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ConfigError, match=message):
        load_ours(folder)


@pytest.mark.parametrize("version", tiny.VERSIONS)
@pytest.mark.parametrize(("wanted", "slices"), [(1, 1), (40, 2)])
def test_dummy_item(tmp_path: Path, version: tiny.Version, wanted: int, slices: int) -> None:
    assert load_ours(tiny.write_checkpoint(tmp_path, version)).dummy_item(wanted).grid == (8, 8, slices)
