"""Qwen2.5-VL beyond what all models are tested for: normalisation, half precision, folders that transformers saves."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import tiny
from tests.oracle import SAMPLES, Runner, load_ours, load_processor, make_sample
from tests.oracle_qwen2_5_vl import Qwen2_5_VLReference, normalized, positions


def test_positions_are_those_of_the_original_rule(tmp_path: Path) -> None:
    processor = load_processor(tiny.write_checkpoint(tmp_path))
    for name in SAMPLES:
        sample = make_sample(processor, name)
        np.testing.assert_array_equal(sample.prompt.positions, positions(sample).numpy())


def test_pixels_are_normalised_bit_for_bit(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path)
    item = make_sample(load_processor(folder), "image").prompt.media[0]
    ours = load_ours(folder).visual.patch_embed.normalize(torch.from_numpy(item.pixels))
    assert torch.equal(ours, normalized([item]))


def test_half_precision_is_no_worse_than_the_reference(tmp_path: Path) -> None:
    """bfloat16 rounds where the reference rounds: the distance to float32 is that of transformers' bfloat16."""
    folder = tiny.write_checkpoint(tmp_path, dtype="bfloat16")
    processor, runner = load_processor(folder), Runner(load_ours(folder, torch.bfloat16), num_tokens=4096)
    exact, rounded = Qwen2_5_VLReference(folder), Qwen2_5_VLReference(folder, torch.bfloat16)
    ours, theirs = [], []
    for sample in (make_sample(processor, name) for name in SAMPLES):
        truth = exact.logits(sample)
        ours.append((runner.logits([sample], chunk=64)[0] - truth).square().mean())
        theirs.append((rounded.logits(sample).float() - truth).square().mean())
    assert sum(ours) < 1.2 * sum(theirs)


@pytest.mark.parametrize("tied", [True, False])
def test_folder_saved_by_transformers(tmp_path: Path, tied: bool) -> None:
    """What `save_pretrained` writes today loads to the same model."""
    original = tiny.write_checkpoint(tmp_path / "original", tied=tied)
    Qwen2_5_VLReference(original).model.save_pretrained(tmp_path / "saved")  # the processor has its own
    shutil.copy(original / "preprocessor_config.json", tmp_path / "saved")
    ours, again = load_ours(original).state_dict(), load_ours(tmp_path / "saved").state_dict()
    assert ours.keys() == again.keys()
    assert all(torch.equal(ours[name], again[name]) for name in ours)
