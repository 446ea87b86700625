"""Runs of prompts through `LLM`, and a look at what its scheduler did with them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trifocal.engine.scheduler import Scheduler
from trifocal.llm import LLM
from trifocal.sampling_params import SamplingParams
from trifocal.types import EngineStats, MediaItem, RequestOutput, StepPlan

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


def picture(seed: int, height: int = 84, width: int = 112) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def clip(seed: int, frames: int = 4, height: int = 84, width: int = 84) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def turn(text: str) -> str:
    """A question as the tiny tokenizers' chat templates write it."""
    return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


def text_prompts() -> list[dict[str, Any]]:
    """16 prompts of text, of lengths between some tokens and several blocks; some begin alike."""
    words = ("circles", "dogs", "red", "pictures", "foxes", "of them")
    counts = (1, 2, 3, 5, 7, 9, 12, 17, 30)
    prompts = [turn(f"How many {words[index % 6]} are there? " * count) for index, count in enumerate(counts)]
    prompts += [turn("How many circles? " * count + "bye") for count in (2, 8, 20)]
    prompts += [turn(text) for text in ("bye", "The quick brown fox", "?", "Where?")]
    assert len(prompts) == 16
    return [{"prompt": prompt} for prompt in prompts]


def mixed_prompts(image: str | None, video: str | None) -> list[dict[str, Any]]:
    """16 prompts: text of several lengths, pictures (some of equal size under the same text), clips, both.

    For a model without a placeholder for pictures they are all text.
    """
    if image is None:
        return text_prompts()
    prompts: list[dict[str, Any]] = [{"prompt": turn("How many circles? " * count)} for count in (1, 2, 5, 9, 17)]
    for seed in range(4):
        data = {"image": picture(seed)}
        prompts.append({"prompt": turn(f"{image}What is in the image?"), "multi_modal_data": data})
    prompts.append({"prompt": turn(f"Look: {image}"), "multi_modal_data": {"image": picture(9, 140, 308)}})
    three = [picture(10, 28, 28), picture(11, 252, 84), picture(12, 112, 112)]
    prompts.append({"prompt": turn(f"{image} or {image}{image}?"), "multi_modal_data": {"image": three}})
    same = [picture(13), picture(13)]
    prompts.append({"prompt": turn(f"{image} and {image}"), "multi_modal_data": {"image": same}})
    for seed in range(2):
        prompts.append({"prompt": turn(f"{video}Where?"), "multi_modal_data": {"video": clip(seed)}})
    both = {"image": picture(20), "video": clip(21, frames=6)}
    prompts.append({"prompt": turn(f"{video} then {image} what?"), "multi_modal_data": both})
    prompts.append({"prompt": turn("bye")})
    assert len(prompts) == 16
    return prompts


class Watch:
    """What a scheduler plans from now on: stretches of positions, sequence by sequence and start by start."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.most_tokens_in_a_step = 0
        self._media: dict[str, tuple[MediaItem, ...]] = {}
        self._starts: dict[str, list[list[tuple[int, int]]]] = defaultdict(list)  # more than one: it was preempted
        self._schedule: Callable[[], StepPlan | None] = scheduler.schedule
        scheduler.schedule = self._record  # type: ignore[method-assign]

    def _record(self) -> StepPlan | None:
        plan = self._schedule()
        if plan is not None:
            for new in plan.new:
                self._media[new.request.request_id] = new.request.prompt.media
                self._starts[new.request.request_id].append([])
            for seq in plan.scheduled:
                self._starts[seq.request_id][-1].append((seq.start, seq.start + seq.num_tokens))
            total = sum(seq.num_tokens for seq in plan.scheduled)
            self.most_tokens_in_a_step = max(self.most_tokens_in_a_step, total)
        return plan

    def _runs(self) -> Iterator[tuple[MediaItem, list[tuple[int, int]], bool]]:
        """Each item with the stretches of each start of its sequence, and whether that start ended by preemption."""
        for request_id, starts in self._starts.items():
            for item in self._media[request_id]:
                for index, stretches in enumerate(starts):
                    yield item, stretches, index + 1 < len(starts)

    @property
    def most_pieces(self) -> int:
        """In how many steps the positions of one picture were computed, at most."""
        pieces = [
            sum(start < item.span.end and end > item.span.offset for start, end in stretches)
            for item, stretches, _ in self._runs()
            if item.modality == "image"
        ]
        return max(pieces, default=0)

    @property
    def num_preempted_inside(self) -> int:
        """How often a sequence was preempted between two positions of one picture."""
        return sum(
            item.modality == "image" and was_preempted and item.span.offset < stretches[-1][1] < item.span.end
            for item, stretches, was_preempted in self._runs()
        )

    @property
    def num_cuts_at_separators(self) -> int:
        """How often a step ended right before or behind a token inside a span that takes no embedding."""
        return sum(
            item.span.offset < end < item.span.end and not all(_around(item, end))
            for item, stretches, _ in self._runs()
            for _, end in stretches
        )


def _around(item: MediaItem, position: int) -> tuple[bool, ...]:
    inside = item.span.is_embed
    index = position - item.span.offset
    return (True,) if inside is None else inside[index - 1 : index + 1]


@dataclass(frozen=True)
class Outcome:
    """Tokens of each prompt (in the last round), the engine's counters at the end, what was planned."""

    tokens: list[list[int]]
    stats: EngineStats
    watch: Watch


def tokens(outputs: Sequence[RequestOutput]) -> list[list[int]]:
    """Of the first choice of each."""
    return [output.outputs[0].token_ids for output in outputs]


def is_idle(stats: EngineStats) -> bool:
    """Whether nothing is held by anyone."""
    return (stats.kv_blocks_used, stats.encoder_bytes_pinned, stats.num_running, stats.num_waiting) == (0, 0, 0, 0)


def run_together(
    folder: Path, prompts: list[dict[str, Any]], params: Any = GREEDY, *, rounds: int = 1, **engine_args: Any
) -> Outcome:
    """All prompts at once through a new `LLM`, which holds nothing in the end."""
    with LLM(str(folder), **engine_args) as llm:
        watch = Watch(llm._engine.scheduler)
        for _ in range(rounds):
            outputs = llm.generate(prompts, params, use_tqdm=False)
        stats = llm.stats()
    assert is_idle(stats)
    return Outcome(tokens(outputs), stats, watch)


def run_alone(folder: Path, prompts: list[dict[str, Any]], **engine_args: Any) -> list[list[int]]:
    """One prompt at a time, whole, nothing cached."""
    with LLM(str(folder), enable_prefix_caching=False, **engine_args) as llm:
        return [tokens(llm.generate(prompt, GREEDY, use_tqdm=False))[0] for prompt in prompts]
