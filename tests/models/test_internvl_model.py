"""InternVL beyond what all models are tested for: tied heads, other tiles, ps_version v1."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import tiny_internvl as tiny
from tests.oracle import TOLERANCE, Runner, load_ours, load_processor, make_sample, relative_error
from tests.oracle_internvl import InternVLReference, reference, tiles_of
from trifocal.media.patches import PatchLayout
from trifocal.types import MediaItem, Span


@pytest.mark.parametrize("layout", ["original", "native"])
def test_tied_head(tmp_path: Path, layout: tiny.Format) -> None:
    """Without a head in the files the embedding serves, unless config.json says that there must be one."""
    folder = tiny.write_checkpoint(tmp_path, layout=layout, tied=True)
    sample = make_sample(load_processor(folder), "image")
    expected = InternVLReference("qwen2", "300M", tied=True).logits(sample)
    assert relative_error(Runner(load_ours(folder)).logits([sample])[0], expected) < TOLERANCE


@torch.inference_mode()
def test_other_grid_resizes_the_position_table(tmp_path: Path) -> None:
    """Tiles of 84 pixels on a table for 56."""
    model = load_ours(tiny.write_checkpoint(tmp_path, tile=84))
    frames = np.random.default_rng(1).integers(0, 256, (2, 84, 84, 3), dtype=np.uint8)
    item = MediaItem("image", bytes(16), Span(0, 18), (2, 6, 6), PatchLayout(merge=1, temporal=1).patchify(frames))
    pixels = model.visual.patch_embed.normalize(torch.from_numpy(item.pixels))
    pixels = pixels.view(2, 6, 6, 3, 14, 14).permute(0, 3, 1, 4, 2, 5).reshape(2, 3, 84, 84)
    assert relative_error(model.encode([item])[0], reference("qwen2", "300M").tile_embeds(pixels)) < TOLERANCE


def test_pixels_are_normalised_bit_for_bit(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path)
    item = make_sample(load_processor(folder), "image").prompt.media[0]
    ours = load_ours(folder).visual.patch_embed.normalize(torch.from_numpy(np.asarray(item.pixels)))
    tiles = ours.view(-1, 4, 4, 3, 14, 14).permute(0, 3, 1, 4, 2, 5).reshape(-1, 3, 56, 56)
    assert len(tiles) == item.grid[0] > 8, "more tiles than one pass of the tower takes"
    assert torch.equal(tiles, tiles_of([item]))


def test_pixel_shuffle_v1_lays_tokens_column_by_column(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path)
    item = make_sample(load_processor(folder), "image").prompt.media[0]
    second = load_ours(folder).encode([item])[0]
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "ps_version": "v1"}))
    first = load_ours(folder).encode([item])[0]
    turned = first.view(item.grid[0], 2, 2, -1).transpose(1, 2).flatten(0, 2)
    assert torch.allclose(turned, second, atol=1e-5) and not torch.allclose(first, second, atol=1e-2)
