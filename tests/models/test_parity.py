"""Every model against its reference, in float32: logits, chunks, batches, the cache, spellings, every single weight."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.models.families import ENTRIES, Entry
from tests.oracle import (
    SAMPLES,
    TEXTS,
    TOLERANCE,
    WHOLE,
    Reference,
    Runner,
    Sample,
    load_ours,
    load_processor,
    make_sample,
    relative_error,
)
from tests.ranks import on_ranks
from trifocal.distributed import Group
from trifocal.models.base import Model


@dataclass
class Case:
    """One entry, loaded by both."""

    entry: Entry
    folder: Path

    @cached_property
    def ours(self) -> Model:
        return load_ours(self.folder)

    @cached_property
    def reference(self) -> Reference:
        return self.entry.reference(self.folder)

    @cached_property
    def samples(self) -> dict[str, Sample]:
        processor = load_processor(self.folder)
        return {name: make_sample(processor, name) for name in self.of(*SAMPLES)}

    def of(self, *names: str) -> tuple[str, ...]:
        """Those samples that the model takes; a language model alone has two."""
        return names if self.entry.image else TEXTS

    @cached_property
    def expected(self) -> dict[str, Tensor]:
        return {name: self.reference.logits(sample) for name, sample in self.samples.items()}


# InternVL's other pairs of language model and tower: each of both is in a pair that is not slow.
CROSSED = {
    "internvl-qwen2-6B", "internvl-internlm2-300M", "internvl-llama-6B", "internvl-phi3-300M", "internvl-qwen3-300M",
}  # fmt: skip


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[pytest.mark.slow] * (name in CROSSED)) for name in ENTRIES]
)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    entry = ENTRIES[request.param]
    return Case(entry, entry.write(tmp_path_factory.mktemp("entry") / "model", entry.spellings[0]))


# ------------------------------------------------------------------------------------------------- logits


def test_logits(case: Case) -> None:
    for name, sample in case.samples.items():
        expected = case.expected[name]
        ours = Runner(case.ours).logits([sample])[0]
        assert ours.dtype == torch.float32 and ours.shape == expected.shape
        assert relative_error(ours, expected) < TOLERANCE, name
        assert expected.argmax(-1).unique().numel() > 10, "a constant answer would prove nothing"


SPELLINGS = [(name, spelling) for name, entry in ENTRIES.items() for spelling in entry.spellings[1:]]


@pytest.mark.parametrize(("name", "spelling"), SPELLINGS)
def test_the_same_weights_under_other_names(tmp_path: Path, name: str, spelling: str) -> None:
    """Bit for bit the same parameters, and logits that agree with the reference: also config.json says the same."""
    entry = ENTRIES[name]
    first, other = (entry.write(tmp_path / each, each) for each in (entry.spellings[0], spelling))
    model, same = load_ours(other), load_ours(first).state_dict()
    assert model.state_dict().keys() == same.keys()
    assert all(torch.equal(values, same[key]) for key, values in model.state_dict().items())
    processor, reference = load_processor(other), entry.reference(other)
    for sample in (make_sample(processor, each) for each in ("text", "images", "video")):
        assert relative_error(Runner(model).logits([sample])[0], reference.logits(sample)) < TOLERANCE


@pytest.mark.parametrize("block_size", [16, 128])
def test_chunks_through_the_cache(case: Case, block_size: int) -> None:
    for name in case.of("image and video", "images"):
        ours = Runner(case.ours, block_size=block_size).logits([case.samples[name]], chunk=7)[0]
        assert relative_error(ours, case.expected[name]) < TOLERANCE


@pytest.mark.parametrize(("chunk", "names"), [(1, ("text", "image")), (50, ("text", "image", "odd sizes", "video"))])
def test_several_sequences_in_a_step(case: Case, chunk: int, names: tuple[str, ...]) -> None:
    """Chunks of 1 are decoding steps, grouped and padded; sequences end one after the other."""
    names = case.of(*names)
    outputs = Runner(case.ours).logits([case.samples[name] for name in names], chunk=chunk)
    for ours, name in zip(outputs, names, strict=True):
        assert relative_error(ours, case.expected[name]) < TOLERANCE


def test_a_cached_beginning(case: Case) -> None:
    """Blocks of an earlier sequence serve a later one, up to this or that block's end, also within pictures."""
    name = case.of("images")[-1]
    sample = case.samples[name]
    runner = Runner(case.ours, num_tokens=16384)
    filled = runner.table(sample.num_tokens)
    runner.logits([sample], tables=[filled])
    ends = range(runner.block_size, sample.num_tokens, 3 * runner.block_size)
    assert not sample.media or any(
        item.span.offset < end < item.span.end for item in sample.prompt.media for end in ends
    )
    for end in ends:
        fresh = runner.table(sample.num_tokens - end)
        table = [*filled[: end // runner.block_size], *fresh]
        ours = runner.logits([sample], chunk=WHOLE if end % 32 else 5, tables=[table], start=end)[0]
        assert relative_error(ours, case.expected[name][end:]) < TOLERANCE


# ------------------------------------------------------------------------------------------------- media


@torch.inference_mode()
def test_media_together_and_alone(case: Case) -> None:
    """Both give the reference's embeddings, as many as the span says, and each item has memory of its own."""
    if not case.entry.image:
        pytest.skip("takes text only")
    for sample in (case.samples["odd sizes"], case.samples["video"]):
        items = sample.prompt.media
        together, alone = case.ours.encode(items), [case.ours.encode([item])[0] for item in items]
        assert [len(part) for part in together] == [item.span.num_embeds for item in items]
        expected = case.reference.embeds(sample)
        assert relative_error(torch.cat(together), expected) < TOLERANCE
        assert relative_error(torch.cat(alone), expected) < TOLERANCE
        assert all(part.untyped_storage().nbytes() == part.nbytes for part in together)


@torch.inference_mode()
@pytest.mark.parametrize("wanted", [1, 40, 256])
def test_dummy_item(case: Case, wanted: int) -> None:
    """For measuring memory: as many embeddings as asked for, or a few fewer, but at least one tile."""
    if not case.entry.image:
        assert case.ours.dummy_item(wanted) is None
        return
    item, least = case.ours.dummy_item(wanted), case.ours.dummy_item(1).span.num_embeds
    assert wanted / 2 < item.span.num_embeds <= max(wanted, least)
    assert len(case.ours.encode([item])[0]) == item.span.num_embeds


# ------------------------------------------------------------------------------------------------- shares


# Every decoder once, and every number of key heads; towers are whole on each rank.
SHARED = [name for name in ENTRIES if not name.endswith(("-6B", "-yarn", "-shortened", "-2.5", "-2.6"))]


@pytest.mark.parametrize("case", SHARED, indirect=True)
@pytest.mark.parametrize("size", [2, 4])
def test_ranks_that_share_a_model(case: Case, size: int) -> None:
    """Together they give what one gives, chunk by chunk through caches of their own heads. Each has its part of every
    linear layer of the decoder; where key heads are fewer than ranks, neighbours have the same one."""
    name = "image" if "image" in case.samples else "text"
    sample = case.samples[name]
    whole = sum(each.numel() for each in case.ours.language_model.parameters())

    def run(group: Group) -> tuple[Tensor, int, int]:
        model = load_ours(case.folder, group=group)
        runner = Runner(model)
        shared = sum(each.numel() for each in model.language_model.parameters())
        return runner.logits([sample], chunk=30)[0], shared, runner.attention.cache.keys.shape[2]

    results = on_ranks(size, run)
    logits, kv_heads = results[0][0], case.ours.language_model.config.num_kv_heads
    assert relative_error(logits, case.expected[name]) < TOLERANCE
    assert torch.equal(logits.argmax(-1), Runner(case.ours).logits([sample])[0].argmax(-1))
    assert all(shared < 1.2 * whole / size and heads == max(1, kv_heads // size) for _, shared, heads in results)


# ------------------------------------------------------------------------------------------------- the tests' own worth


def test_every_weight_matters(case: Case) -> None:
    """The comparison can fail: each parameter, changed by a fifth at most, moves logits far beyond the tolerance."""
    name = case.of("small image")[0]
    sample, expected, model = case.samples[name], case.expected[name], load_ours(case.folder)
    generator = torch.Generator().manual_seed(3)
    for path, parameter in model.named_parameters():
        before = parameter.clone()
        parameter.mul_(torch.empty_like(parameter).uniform_(0.8, 1.2, generator=generator))
        error = relative_error(Runner(model, num_tokens=128).logits([sample])[0], expected)
        parameter.copy_(before)
        assert error > 5 * TOLERANCE, path
