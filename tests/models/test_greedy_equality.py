"""Every family through `LLM`: the same greedy tokens whatever runs beside a request and however it is cut into steps,
and those that the reference chooses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from tests.models.engine_runs import GREEDY, Outcome, mixed_prompts, picture, run_alone, run_together, tokens
from tests.models.families import ENTRIES, Entry
from tests.oracle import Sample
from trifocal.config.engine import EngineArgs, resolve
from trifocal.llm import LLM
from trifocal.media.media import Image, Media, Video
from trifocal.prompt.builder import PromptBuilder
from trifocal.types import Prompt

BLOCK = 16
RUNS = [
    (name, spelling, dtype) for name, entry in ENTRIES.items() for spelling in entry.in_engine for dtype in entry.dtypes
]


@dataclass
class Case:
    """One entry in one spelling and type, and its answers to the mixed prompts, given one at a time."""

    entry: Entry
    folder: Path
    dtype: str
    alone: list[list[int]]

    @cached_property
    def prompts(self) -> list[dict[str, Any]]:
        return mixed_prompts(self.entry.image, self.entry.video)

    @cached_property
    def builder(self) -> PromptBuilder:
        return PromptBuilder(resolve(EngineArgs(model=str(self.folder))))

    @cached_property
    def built(self) -> list[Prompt]:
        """The prompts as the engine gets them."""
        return [build(self.builder, prompt) for prompt in self.prompts]

    @property
    def bytes_of_the_largest_item(self) -> int:
        """Its embeddings in the encoder cache."""
        num_embeds = max(item.span.num_embeds for prompt in self.built for item in prompt.media)
        return num_embeds * self.builder.config.model.spec.text.hidden_size * (4 if self.dtype == "float32" else 2)

    @property
    def blocks_of_the_longest(self) -> int:
        """KV blocks that the longest prompt and its answer fill."""
        return -(-(max(len(prompt.token_ids) for prompt in self.built) + GREEDY.max_tokens) // BLOCK)

    def together(self, **engine_args: Any) -> Outcome:
        return run_together(self.folder, self.prompts, dtype=self.dtype, **engine_args)


def items(prompt: dict[str, Any], modality: str) -> list[Any]:
    given = prompt.get("multi_modal_data", {}).get(modality, [])
    return given if isinstance(given, list) else [given]


def build(builder: PromptBuilder, prompt: dict[str, Any]) -> Prompt:
    return builder.build(prompt["prompt"], {kind: items(prompt, kind) for kind in ("image", "video")})


@pytest.fixture(scope="module", params=RUNS, ids="-".join)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    name, spelling, dtype = request.param
    entry = ENTRIES[name]
    folder = entry.write(tmp_path_factory.mktemp("tiny") / "model", spelling)
    made = Case(entry, folder, dtype, run_alone(folder, mixed_prompts(entry.image, entry.video), dtype=dtype))
    yield made
    made.builder.close()


def test_answers_are_not_trivial(case: Case) -> None:
    assert len({tuple(each) for each in case.alone}) == len(case.alone), "prompts must give different answers"
    variety = [len(set(each)) for each in case.alone]
    assert min(variety) > 2 and sorted(variety)[8] > 8, "an answer of one repeated token proves nothing"


def test_the_reference_chooses_the_same_tokens(case: Case) -> None:
    """What the processor lays out, and the engine computes step by step, is what the reference reads in one piece."""
    if case.dtype != "float32":
        pytest.skip("half precision rounds elsewhere")
    reference, num_vocab = case.entry.reference(case.folder), case.builder.tokenizer.vocab_size
    for given, prompt, answer in zip(case.prompts, case.built, case.alone, strict=True):
        sample = Sample(prompt, media_of(given, prompt)).followed_by(answer[:-1])
        logits = reference.logits(sample)[-len(answer) :, :num_vocab]
        assert logits.argmax(-1).tolist() == answer


def media_of(given: dict[str, Any], prompt: Prompt) -> tuple[Media, ...]:
    """The pictures and clips of a prompt, in the order of their places."""
    waiting = {modality: iter(items(given, modality)) for modality in ("image", "video")}
    arrays = [(item.modality, next(waiting[item.modality])) for item in prompt.media]
    # Raw frames are taken as they are, and count as two a second.
    return tuple(Image(pixels) if modality == "image" else Video(pixels, 2.0) for modality, pixels in arrays)


@pytest.mark.parametrize("block_size", [BLOCK, 128])
def test_together(case: Case, block_size: int) -> None:
    assert case.together(block_size=block_size).tokens == case.alone


@pytest.mark.parametrize("budget", [16, 40])
def test_chunks_within_a_picture(case: Case, budget: int) -> None:
    """Steps of 16 tokens cut pictures in three and more pieces; where spans hold separators, ends fall on these too."""
    outcome = case.together(max_num_batched_tokens=budget)
    assert outcome.tokens == case.alone
    assert outcome.watch.most_tokens_in_a_step <= budget
    if case.entry.image:
        assert outcome.watch.most_pieces >= (3 if budget == 16 else 2)
    if budget == 16 and any(item.span.is_embed for prompt in case.built for item in prompt.media):
        assert outcome.watch.num_cuts_at_separators > 0


def test_without_chunked_prefill(case: Case) -> None:
    outcome = case.together(enable_chunked_prefill=False, max_model_len=512)
    assert outcome.tokens == case.alone
    assert outcome.watch.most_pieces == (1 if case.entry.image else 0)


def test_prefix_cache_off(case: Case) -> None:
    outcome = case.together(enable_prefix_caching=False)
    assert outcome.tokens == case.alone
    assert outcome.stats.prefix_hits == 0


def test_a_second_round_hits_the_prefix_cache_and_encodes_nothing(case: Case) -> None:
    first, second = case.together(), case.together(rounds=2)
    assert first.tokens == second.tokens == case.alone
    hashes = {item.content_hash for prompt in case.built for item in prompt.media}
    assert second.stats.num_media_encoded == first.stats.num_media_encoded == len(hashes)
    full_blocks = sum((len(prompt.token_ids) - 1) // BLOCK for prompt in case.built)
    assert second.stats.prefix_hits >= first.stats.prefix_hits + full_blocks * BLOCK


@pytest.mark.parametrize("budget", [None, 20])
def test_preemption(case: Case, budget: int | None) -> None:
    """A pool that holds the longest request but not all of them; with small steps also while a picture is computed."""
    pool = case.blocks_of_the_longest + 1
    outcome = case.together(num_gpu_blocks_override=pool, max_num_batched_tokens=budget)
    assert outcome.tokens == case.alone
    assert outcome.stats.num_preemptions > 0, "the pool must be too small for all"
    assert budget is None or not case.entry.image or outcome.watch.num_preempted_inside > 0


def test_encoder_cache_for_one_item_at_a_time(case: Case) -> None:
    """Room for the largest item only: embeddings are dropped and made again."""
    if not case.entry.image:
        pytest.skip("takes text only")
    room = case.bytes_of_the_largest_item
    outcome = case.together(encoder_cache_gib=room / 2**30, max_num_batched_tokens=64)
    assert outcome.tokens == case.alone
    assert 0 < outcome.stats.encoder_bytes_cached <= room


def test_pictures_of_equal_size_are_not_confused(case: Case) -> None:
    """In flight at the same time and under the same words: each gets its own answer, again and again."""
    if not case.entry.image:
        pytest.skip("takes text only")
    prompt = case.prompts[5]
    other = {**prompt, "multi_modal_data": {"image": picture(99)}}
    with LLM(str(case.folder), dtype=case.dtype) as llm:
        got = tokens(llm.generate([prompt, other, prompt], GREEDY, use_tqdm=False))
        again = tokens(llm.generate([other, prompt], GREEDY, use_tqdm=False))
    assert got[0] == got[2] == again[1] == case.alone[5]
    assert got[1] == again[0] != got[0]
