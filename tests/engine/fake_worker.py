"""A worker without a model. Its "KV" is a hash of all that a model would have seen, so every plan can be checked.

The content of a position covers its token, the embedding at it (content hash and row), everything before it, the cache
salt, and whether its sequence is longer than `Limits.short_context`. A sampled token is a function of the content of
the last position: it is right only if all blocks are. Where a plan has room for drafts, some guesses are wrong.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from zlib import crc32

import numpy as np

from trifocal.engine.limits import Limits
from trifocal.sampling_params import SamplingParams
from trifocal.types import MediaItem, Prompt, Request, ScheduledSeq, Span, StepPlan, StepResult, TokenLogprobs

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
    sampling = SamplingParams(**params)  # type: ignore[arg-type]
    return Request(request_id, prompt, sampling, frozenset(stop_ids), prompt_logprobs=sampling.prompt_logprobs)


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
    while request.params.max_tokens != 0:
        is_long = is_longer(len(request.prompt.token_ids) + len(output), short_context)
        output.append(sample(History(request, output, is_long=is_long).contents[-1]))
        if output[-1] in request.stop_token_ids and len(output) > request.params.min_tokens:
            return output, "stop"
        if len(output) in (request.params.max_tokens, left):
            break
    return output, "length"


def prompt_logprobs(request: Request) -> list[TokenLogprobs | None]:
    """What the worker makes of a prompt: each token with the content of the position before it."""
    contents, token_ids = History(request).contents, request.prompt.token_ids
    pairs = zip(token_ids[1:], contents, strict=False)
    return [None, *(TokenLogprobs([token_id], [float(before)], 1) for token_id, before in pairs)]


@dataclass
class _State:
    request: Request
    history: History
    block_ids: list[int] = field(default_factory=list)
    has_output: bool = False  # it started with tokens generated before
    num_computed: int | None = None  # None until its first step, which may start behind a cached prefix
    prompt_logprobs: dict[int, TokenLogprobs | None] = field(default_factory=lambda: {0: None})  # by position


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
        self.num_drafts = self.num_kept = 0
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
            state = _State(new.request, history, has_output=bool(new.output_token_ids))
            self._states[new.request.request_id] = state
        failed = self._encode(plan)
        errors: dict[str, str] = {}
        token_ids, prompts = {}, {}
        for seq in plan.scheduled:
            chosen = self._compute(seq, errors, failed)
            if seq.num_sampled_rows and seq.request_id in self.unlucky and self._random.random() < 0.3:
                errors.setdefault(seq.request_id, "the model produced no valid probabilities")
            if seq.num_sampled_rows and seq.request_id not in errors:
                token_ids[seq.request_id] = chosen
            self._collect_prompt(seq, prompts)
        return StepResult(
            plan.step_id,
            token_ids,
            prompt_logprobs={name: found for name, found in prompts.items() if name not in errors},
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

    def _compute(self, seq: ScheduledSeq, errors: dict[str, str], failed: set[bytes]) -> list[int]:
        """The tokens that the sequence chooses."""
        state, size = self._states[seq.request_id], self.limits.block_size
        del state.block_ids[-(-seq.start // size) :]
        state.block_ids.extend(seq.new_block_ids)
        history = state.history
        num_known = seq.num_tokens - seq.max_drafts
        start = min(seq.start, len(history.contents) - num_known)
        end = start + num_known
        assert num_known > 0
        assert end <= len(history.contents), "computes a token that nobody knows"
        assert history.is_long == is_longer(len(history.contents), self.limits.short_context)
        assert history.is_long or not is_longer(len(history.contents) + seq.max_drafts, self.limits.short_context)
        is_last = end == len(history.contents) and state.request.params.max_tokens != 0
        assert seq.num_sampled_rows == (1 + seq.max_drafts if is_last else 0)
        assert seq.max_drafts <= (self.limits.max_drafts if is_last else 0)
        assert len(state.block_ids) == -(-(seq.start + seq.num_tokens) // size)
        assert len(set(state.block_ids)) == len(state.block_ids)
        if state.num_computed is None:
            assert start % size == 0, "a cached prefix is made of whole blocks"
        else:
            assert start == state.num_computed, "a gap, or computed twice"
        may_fail = any(item.content_hash in self.failing for item in state.request.prompt.media)
        before = self._contents(state, start)[-1] if start else history.root
        for position in range(start, end):
            embed: tuple[bytes, int] | str | None = history.embed_at(position)
            if isinstance(embed, tuple) and embed[0] not in self.embeds:
                assert may_fail, "the embedding is not there"
                errors.setdefault(seq.request_id, "the request's media could not be encoded")
                failed.add(embed[0])
                embed = "missing"
            before = content(before, history.token_ids[position], embed)
            self._write(state, position, before)
        is_right = self._contents(state, end) == history.contents[:end]
        assert is_right or may_fail, "a block does not hold what its sequence needs"
        chosen = self._sample(state, seq, before if is_right else before + 1) if is_last else []
        state.num_computed = end + max(0, len(chosen) - 1)
        return chosen

    def _sample(self, state: _State, seq: ScheduledSeq, last: int) -> list[int]:
        """Tokens behind a position of this content, which is the last that is known: drafts are tried one by one."""
        history = state.history
        chosen = [sample(last)]
        position, num_drafts, is_kept = len(history.contents), self._random.randint(0, seq.max_drafts), True
        history.append(chosen[0])
        for _ in range(num_drafts):
            draft = chosen[-1] if is_kept and self._random.random() < 0.7 else self._random.randrange(VOCAB)
            last = content(last, draft, None)
            self._write(state, position, last)
            position += 1
            is_kept = is_kept and draft == chosen[-1]
            if is_kept:
                chosen.append(sample(last))
                history.append(chosen[-1])
        self.num_drafts += num_drafts
        self.num_kept += len(chosen) - 1
        return chosen

    def _write(self, state: _State, position: int, value: int) -> None:
        size = self.limits.block_size
        self._kv[state.block_ids[position // size]][position % size] = value

    def _collect_prompt(self, seq: ScheduledSeq, prompts: dict[str, list[TokenLogprobs | None]]) -> None:
        """Add what the computed part of a prompt tells; the whole to `prompts` once it is complete."""
        state = self._states[seq.request_id]
        num_prompt = len(state.request.prompt.token_ids)
        if state.request.prompt_logprobs is None or seq.start >= num_prompt or state.has_output:
            return
        end = min(seq.start + seq.num_tokens - seq.max_drafts, num_prompt)
        found = prompt_logprobs(state.request)
        for position in range(seq.start + 1, min(end + 1, num_prompt)):
            state.prompt_logprobs[position] = found[position]
        if end == num_prompt:
            assert sorted(state.prompt_logprobs) == list(range(num_prompt)), "a part of the prompt was not computed"
            prompts[seq.request_id] = [state.prompt_logprobs[position] for position in range(num_prompt)]

    def _contents(self, state: _State, end: int) -> list[int]:
        """What the block table holds for positions `0 .. end`."""
        return [value for block in state.block_ids for value in self._kv[block]][:end]
