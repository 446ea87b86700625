"""Qwen2.5-VL against transformers: tiny random checkpoints in every spelling, every kind of prompt, every chunking."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import tiny
from tests.oracle import Runner, Sample, load_ours, load_reference, normalized, reference_logits, relative_error

TOLERANCE = 1e-4
CONFIGS: dict[str, dict[str, Any]] = {
    "flat": {"kv_heads": 2, "tied": True},
    "flat-untied-kv1": {"kv_heads": 1, "tied": False, "seed": 1},
    "flat-kv4": {"kv_heads": 4, "tied": True, "seed": 2, "num_shards": 3},
    "nested": {"kv_heads": 2, "tied": False, "seed": 3, "layout": "nested"},
    "nested-tied-kv1": {"kv_heads": 1, "tied": True, "seed": 4, "layout": "nested"},
    "shortened": {"kv_heads": 2, "tied": False, "seed": 5, "layout": "shortened"},
    "yarn": {"kv_heads": 2, "tied": False, "seed": 6, "rope_scaling": tiny.YARN},
    "nested-yarn": {"kv_heads": 4, "tied": True, "seed": 7, "layout": "nested", "rope_scaling": tiny.YARN},
}


@dataclass
class Case:
    """One checkpoint, loaded by both."""

    folder: Path
    kv_heads: int
    ours: Any
    reference: Any


@pytest.fixture(scope="module", params=CONFIGS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    options = CONFIGS[request.param]
    folder = tiny.write_checkpoint(tmp_path_factory.mktemp(request.param), **options)
    return Case(folder, options["kv_heads"], load_ours(folder), load_reference(folder))


def samples() -> dict[str, Sample]:
    """Grids are in patches: beyond one window in both directions, and no multiple of it."""
    rng = np.random.default_rng(7)
    several = Sample().text(rng, 3)
    for grid in ((1, 4, 4), (1, 12, 22), (1, 20, 10)):
        several.media(rng, grid).text(rng, 4)
    return {
        "text": Sample().text(rng, 40),
        "image": Sample().text(rng, 5).media(rng, (1, 10, 14)).text(rng, 9),
        "images": several,
        "video": Sample().text(rng, 2).media(rng, (3, 12, 10), video=True, seconds=0.5).text(rng, 6),
        "image-video": Sample().media(rng, (1, 6, 18)).text(rng, 2).media(rng, (2, 10, 10), video=True).text(rng, 6),
    }


@pytest.mark.parametrize("name", samples())
def test_logits(case: Case, name: str) -> None:
    sample = samples()[name]
    runner = Runner(case.ours, kv_heads=case.kv_heads)
    ours, reference = runner.logits([sample])[0], reference_logits(case.reference, sample)
    assert ours.dtype == torch.float32 and ours.shape == (len(sample.token_ids), tiny.VOCAB)
    assert relative_error(ours, reference) < TOLERANCE


def test_chunks_through_the_cache(case: Case) -> None:
    sample = samples()["image-video"]
    for block_size in (16, 128):
        runner = Runner(case.ours, kv_heads=case.kv_heads, block_size=block_size)
        assert relative_error(runner.logits([sample], chunk=7)[0], reference_logits(case.reference, sample)) < TOLERANCE


def test_several_sequences_in_a_step(case: Case) -> None:
    """Chunks of 1 are decoding steps, grouped and padded; sequences end one after the other."""
    chosen = [samples()[name] for name in ("text", "image", "images", "video")]
    for chunk in (1, 50):
        outputs = Runner(case.ours, kv_heads=case.kv_heads).logits(chosen, chunk=chunk)
        for ours, sample in zip(outputs, chosen, strict=True):
            assert relative_error(ours, reference_logits(case.reference, sample)) < TOLERANCE


@torch.inference_mode()
def test_vision_tower(case: Case) -> None:
    """Items encoded together equal items encoded alone, and the reference's tower."""
    items = samples()["images"].items + samples()["video"].items
    grids = torch.tensor([item.grid for item in items])
    reference = case.reference.model.visual(normalized(items), grid_thw=grids).pooler_output
    together = case.ours.encode(items)
    alone = [case.ours.encode([item])[0] for item in items]
    assert [len(part) for part in together] == [item.span.num_embeds for item in items]
    assert relative_error(torch.cat(together), reference) < TOLERANCE
    assert relative_error(torch.cat(alone), reference) < TOLERANCE


def test_parity_notices_a_wrong_weight(tmp_path: Path) -> None:
    """The comparison can fail: one norm weight changed by 5 % in one of the two is seen, in either tower."""
    folder = tiny.write_checkpoint(tmp_path)
    sample = samples()["image"]
    reference = reference_logits(load_reference(folder), sample)
    for part in ("language_model.layers.0.post_attention_layernorm", "visual.blocks.1.norm2", "visual.merger.ln_q"):
        model = load_ours(folder)
        model.get_submodule(part).weight.data[3] *= 1.05
        assert relative_error(Runner(model, kv_heads=2).logits([sample])[0], reference) > 10 * TOLERANCE


def test_pixels_are_normalised_bit_for_bit(tmp_path: Path) -> None:
    model = load_ours(tiny.write_checkpoint(tmp_path))
    item = samples()["image"].items[0]
    ours = model.visual.patch_embed.normalize(torch.from_numpy(item.pixels))
    assert torch.equal(ours, normalized([item]))


def test_half_precision_is_no_worse_than_the_reference(tmp_path: Path) -> None:
    """bfloat16 rounds where the reference rounds: the distance to float32 is that of transformers' bfloat16."""
    folder = tiny.write_checkpoint(tmp_path, dtype="bfloat16")
    runner = Runner(load_ours(folder, torch.bfloat16), kv_heads=2, num_blocks=400)
    exact, rounded = load_reference(folder), load_reference(folder, torch.bfloat16)
    ours, theirs = [], []
    for sample in samples().values():
        truth = reference_logits(exact, sample)
        ours.append((runner.logits([sample], chunk=64)[0] - truth).square().mean())
        theirs.append((reference_logits(rounded, sample).float() - truth).square().mean())
    assert sum(ours) < 1.2 * sum(theirs)


@pytest.mark.parametrize("tied", [True, False])
def test_folder_saved_by_transformers(tmp_path: Path, tied: bool) -> None:
    """What `save_pretrained` writes today loads to the same model."""
    original = tiny.write_checkpoint(tmp_path / "original", tied=tied)
    load_reference(original).save_pretrained(tmp_path / "saved")
    ours, again = load_ours(original).state_dict(), load_ours(tmp_path / "saved").state_dict()
    assert ours.keys() == again.keys()
    assert all(torch.equal(ours[name], again[name]) for name in ours)
