"""A worker without a model. Its "KV" is a hash of all that a model would have seen, so every plan can be checked.

The content of a position covers its token, the embedding at it (content hash and row), everything before it, the cache
salt, and whether its sequence is longer than `Limits.short_context`. A sampled token is a function of the content of
the last position: it is right only if all blocks are.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from zlib import crc32

import numpy as np

from trifocal.engine.admission import Limits
from trifocal.sampling_params import SamplingParams
from trifocal.types import MediaItem, Prompt, Request, ScheduledSeq, Span, StepPlan, StepResult

VOCAB = 97
PLACEHOLDER = 1
_UNWRITTEN = -1


def media_item(content_hash: bytes, offset: int, is_embed: tuple[bool, ...] | int) -> MediaItem:
    """An item whose span starts at `offset`; an int for `is_embed` is a plain span of that length."""
    span = Span(offset, is_embed) if isinstance(is_embed, int) else Span(offset, len(is_embed), is_embed)
    return MediaItem("image", content_hash, span, (1,), np.zeros((1, 1), dtype=np.uint8))


def request(
    request_id: str, token_ids: list[int], *, media: Iterable[MediaItem] = (), salt: str | None = None,
    stop_ids: Iterable[int] = (), **params: object,
) -> Request:  # fmt: skip
    """A request with little to write."""
    prompt = Prompt(token_ids, tuple(media), cache_salt=salt)
    return Request(request_id, prompt, SamplingParams(**params), frozenset(stop_ids))  # type: ignore[arg-type]


def make_limits(**changes: object) -> Limits:
    """Limits with room for everything, but for `changes`."""
    roomy = {
        "max_model_len": 64, "max_num_seqs": 8, "max_num_batched_tokens": 64, "num_blocks": 64, "block_size": 4,
        "bytes_per_embed": 2, "encoder_cache_bytes": 1000, "max_logprobs": 5, "vocab_size": VOCAB,
    }  # fmt: skip
    return Limits(**{**roomy, **changes})  # type: ignore[arg-type]


class History:
    """What the contents of one sequence must be."""

    def __init__(self, request: Request, output_token_ids: Iterable[int] = (), *, is_long: bool = False) -> None:
        self.is_long = is_long
        self._embeds = dict(_embeds(request.prompt))
        self.root = crc32((request.prompt.cache_salt or "").encode(), int(is_long))
        self.token_ids: list[int] = []
        self.contents: list[int] = []
        for token_id in [*request.prompt.token_ids, *output_token_ids]:
            self.append(token_id)

    def append(self, token_id: int) -> None:
        """One more token."""
        before = self.contents[-1] if self.contents else self.root
        self.contents.append(content(before, token_id, self.embed_at(len(self.contents))))
        self.token_ids.append(token_id)

    def embed_at(self, position: int) -> tuple[bytes, int] | None:
        """Content hash and row of the embedding that a position takes."""
        return self._embeds.get(position)


def _embeds(prompt: Prompt) -> Iterable[tuple[int, tuple[bytes, int]]]:
    for item in prompt.media:
        row = 0
        for index in range(item.span.length):
            if item.span.is_embed is None or item.span.is_embed[index]:
                yield item.span.offset + index, (item.content_hash, row)
                row += 1


def content(before: int, token_id: int, embed: tuple[bytes, int] | str | None) -> int:
    """Content of a position, given that of the one before it."""
    return hash((before, token_id, crc32(repr(embed).encode())))


def sample(last: int) -> int:
    """The token that follows a sequence whose last position has this content."""
    return last % VOCAB


def is_longer(num_tokens: int, short_context: int | None) -> bool:
    """Whether a sequence of so many tokens is computed as a long one."""
    return short_context is not None and num_tokens > short_context


def oracle(request: Request, *, context_len: int = 64, short_context: int | None = None) -> tuple[list[int], str]:
    """Output tokens and finish reason of a request that is alone in the world: each token from all before it, anew."""
    output: list[int] = []
    left = context_len - len(request.prompt.token_ids)
    while True:
        is_long = is_longer(len(request.prompt.token_ids) + len(output), short_context)
        output.append(sample(History(request, output, is_long=is_long).contents[-1]))
        if output[-1] in request.stop_token_ids and len(output) > request.params.min_tokens:
            return output, "stop"
        if len(output) in (request.params.max_tokens, left):
            return output, "length"


@dataclass
class _State:
    request: Request
    history: History
    block_ids: list[int] = field(default_factory=list)
    num_computed: int | None = None  # None until its first step, which may start behind a cached prefix


class FakeWorker:
    """Executes plans and asserts that each makes sense.

    Encoding an item in `failing` fails now and then, and so does sampling for requests in `unlucky`.
    """

    def __init__(
        self, limits: Limits, failing: Iterable[bytes] = (), unlucky: Iterable[str] = (), seed: int = 0
    ) -> None:
        self.limits = limits
        self.failing = frozenset(failing)
        self.unlucky = frozenset(unlucky)
        self.failed_hashes: set[bytes] = set()
        self.embeds: dict[bytes, int] = {}
        self.num_encoded = 0
        self._random = random.Random(seed)
        self._kv = [[_UNWRITTEN] * limits.block_size for _ in range(limits.num_blocks)]
        self._states: dict[str, _State] = {}

    def execute(self, plan: StepPlan) -> StepResult:
        """One step, in the order that the contract of `StepPlan` gives."""
        assert plan.scheduled or plan.finished or plan.free_embeds, "a step for nothing"
        assert plan.scheduled or not (plan.new or plan.encode)
        assert plan.num_tokens <= self.limits.max_num_batched_tokens
        assert len(plan.scheduled) <= self.limits.max_num_seqs
        assert len({seq.request_id for seq in plan.scheduled}) == len(plan.scheduled)
        for request_id in plan.finished:
            del self._states[request_id]
        for content_hash in plan.free_embeds:
            self.embeds.pop(content_hash, None)  # one whose encoding failed is not there
        for new in plan.new:
            assert new.request.request_id not in self._states
            history = History(new.request, new.output_token_ids, is_long=new.is_long)
            self._states[new.request.request_id] = _State(new.request, history)
        failed = self._encode(plan)
        errors: dict[str, str] = {}
        token_ids = {}
        for seq in plan.scheduled:
            token_id = self._compute(seq, errors, failed)
            if seq.samples and seq.request_id in self.unlucky and self._random.random() < 0.3:
                errors.setdefault(seq.request_id, "the model produced no valid probabilities")
            if seq.samples and seq.request_id not in errors:
                token_ids[seq.request_id] = token_id
        return StepResult(
            plan.step_id,
            token_ids,
            errors=errors,
            failed_media=frozenset(failed),
            num_sequences=len(self._states),
            num_embeds=len(self.embeds),
        )

    def _encode(self, plan: StepPlan) -> set[bytes]:
        failed = set()
        for job in plan.encode:
            item = self._states[job.request_id].request.prompt.media[job.media_index]
            assert item.content_hash == job.content_hash
            assert job.content_hash not in self.embeds, "encoded twice"
            self.num_encoded += 1
            if job.content_hash in self.failing and self._random.random() < 0.6:
                failed.add(job.content_hash)
            else:
                self.embeds[job.content_hash] = self.limits.num_bytes(item)
        assert sum(self.embeds.values()) <= self.limits.encoder_cache_bytes
        self.failed_hashes |= failed
        return failed

    def _compute(self, seq: ScheduledSeq, errors: dict[str, str], failed: set[bytes]) -> int:
        state, size = self._states[seq.request_id], self.limits.block_size
        state.block_ids.extend(seq.new_block_ids)
        end, history = seq.start + seq.num_tokens, state.history
        assert seq.num_tokens > 0
        assert end <= len(history.contents), "computes a token that nobody knows"
        assert history.is_long == is_longer(len(history.contents), self.limits.short_context)
        assert seq.samples == (end == len(history.contents))
        assert len(state.block_ids) == -(-end // size)
        assert len(set(state.block_ids)) == len(state.block_ids)
        if state.num_computed is None:
            assert seq.start % size == 0, "a cached prefix is made of whole blocks"
        else:
            assert seq.start == state.num_computed, "a gap, or computed twice"
        state.num_computed = end
        may_fail = any(item.content_hash in self.failing for item in state.request.prompt.media)
        before = self._contents(state, seq.start)[-1] if seq.start else history.root
        for position in range(seq.start, end):
            embed: tuple[bytes, int] | str | None = history.embed_at(position)
            if isinstance(embed, tuple) and embed[0] not in self.embeds:
                assert may_fail, "the embedding is not there"
                errors.setdefault(seq.request_id, "the request's media could not be encoded")
                failed.add(embed[0])
                embed = "missing"
            before = content(before, history.token_ids[position], embed)
            self._kv[state.block_ids[position // size]][position % size] = before
        is_right = self._contents(state, end) == history.contents[:end]
        assert is_right or may_fail, "a block does not hold what its sequence needs"
        token_id = sample(before if is_right else before + 1)
        if seq.samples:
            history.append(token_id)
        return token_id

    def _contents(self, state: _State, end: int) -> list[int]:
        """What the block table holds for positions `0 .. end`."""
        return [value for block in state.block_ids for value in self._kv[block]][:end]
