"""What a worker remembers of each sequence between steps, and the tensors of one step made from it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trifocal.attention.base import AttentionBatch
from trifocal.log import get_logger
from trifocal.types import MediaItem, Request, ScheduledNew, ScheduledSeq, StepPlan, TokenLogprobs
from trifocal.worker.logits_processors import LogitsProcessor, processors_of

logger = get_logger(__name__)
_GROW_BY = 256


@dataclass(slots=True)
class SequenceState:
    """One sequence in a worker. It appends the tokens it samples itself, so the next step can be planned before
    they are known to anybody else.

    `fault` says why it cannot be computed. `drafts` are guesses of the step that runs. `prompt_logprobs` are those of
    the prompt as far as it was computed; None where they are not asked for, or were sent.
    """

    request: Request
    token_ids: NDArray[np.int64]  # with room to grow; `num_tokens` of them are valid
    num_tokens: int
    is_long: bool = False  # takes longrope's long factors
    block_ids: list[int] = field(default_factory=list)
    processors: list[LogitsProcessor] = field(default_factory=list)
    fault: str | None = None
    drafts: list[int] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs | None] | None = None

    @classmethod
    def start(cls, new: ScheduledNew) -> SequenceState:
        """State of a sequence that starts, or starts again."""
        known = [*new.request.prompt.token_ids, *new.output_token_ids]
        token_ids = np.zeros(len(known) + _GROW_BY, dtype=np.int64)
        token_ids[: len(known)] = known
        state = cls(new.request, token_ids, len(known), new.is_long)
        try:
            state.processors = processors_of(new.request)
            for processor in state.processors:
                for token_id in new.output_token_ids:
                    processor.accept(token_id)
        except Exception:
            logger.exception("the logits processors of request %s could not be made", new.request.request_id)
            state.fault = "the request's sampling parameters could not be applied; the server's log says more"
        if new.request.prompt_logprobs is not None and not new.output_token_ids:
            state.prompt_logprobs = [None]
        return state

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.request.prompt.token_ids)

    @property
    def num_output_tokens(self) -> int:
        return self.num_tokens - self.num_prompt_tokens

    @property
    def output_token_ids(self) -> NDArray[np.int64]:
        """Tokens generated so far."""
        return self.token_ids[self.num_prompt_tokens : self.num_tokens]

    def append(self, token_id: int) -> None:
        """Add a sampled token. What a processor raises comes out behind that."""
        if self.num_tokens == len(self.token_ids):
            self.token_ids = np.concatenate([self.token_ids, np.zeros_like(self.token_ids)])
        self.token_ids[self.num_tokens] = token_id
        self.num_tokens += 1
        for processor in self.processors:
            processor.accept(token_id)

    def take_blocks(self, seq: ScheduledSeq, block_size: int) -> None:
        """Extend the block table by what a plan gives."""
        del self.block_ids[-(-seq.start // block_size) :]
        self.block_ids.extend(seq.new_block_ids)

    def computed_range(self, seq: ScheduledSeq) -> tuple[int, int]:
        """First position that a step computes, and the one behind its last known token: `drafts` come there."""
        num_known = seq.num_tokens - seq.max_drafts
        start = min(seq.start, self.num_tokens - num_known)
        return start, start + num_known

    def positions(self, start: int, end: int, rows: int) -> NDArray[np.int64]:
        """Rotary positions of tokens `start .. end`, int64 [rows, end - start]."""
        prompt = self.request.prompt
        plain = np.arange(start, end, dtype=np.int64)
        if prompt.positions is None:
            shifted = plain + np.where(plain < self.num_prompt_tokens, 0, prompt.position_delta)
            return np.broadcast_to(shifted, (rows, end - start))
        split = min(max(self.num_prompt_tokens, start), end)
        decoded = np.broadcast_to(plain[split - start :] + prompt.position_delta, (rows, end - split))
        return np.concatenate([prompt.positions[:, start:split], decoded], axis=1)


@dataclass(frozen=True)
class MediaRows:
    """Rows of the step's input that take embeddings of one media item."""

    request_id: str
    content_hash: bytes
    rows: slice | NDArray[np.int64]
    embeds: slice


@dataclass(frozen=True)
class PromptRows:
    """Rows of the step that compute positions `start .. start + num` of a prompt whose log-probabilities are wanted."""

    request_id: str
    start: int
    num: int
    first_row: int


@dataclass(frozen=True)
class ForwardBatch:
    """The tensors of one step: token_ids int64 [n], positions int64 [rows, n], rows of the logits that are sampled.

    Each of `sampled_ids` has as many sampled rows as drafts, and one. `is_long`, bool [n], marks tokens that take
    longrope's long factors; None if none does.
    """

    token_ids: Tensor
    positions: Tensor
    is_long: Tensor | None
    attention: AttentionBatch
    media: list[MediaRows]
    sampled_rows: Tensor
    sampled_ids: list[str]
    prompts: list[PromptRows]


def build_batch(
    plan: StepPlan, states: dict[str, SequenceState], *, block_size: int, position_rows: int, device: torch.device
) -> ForwardBatch:
    """Lay the plan's sequences out one after the other."""
    token_ids, positions, slots, media = [], [], [], []
    sampled_rows: list[int] = []
    sampled_ids, prompts, query_lens, context_lens, row = [], [], [], [], 0
    most_blocks = max(len(states[seq.request_id].block_ids) for seq in plan.scheduled)
    block_tables = np.zeros((len(plan.scheduled), most_blocks), dtype=np.int64)
    for index, seq in enumerate(plan.scheduled):
        state = states[seq.request_id]
        start, end = state.computed_range(seq)
        num_drafts = len(state.drafts)
        table = np.asarray(state.block_ids, dtype=np.int64)
        block_tables[index, : len(table)] = table
        where = np.arange(start, end + num_drafts)
        token_ids.append(state.token_ids[start:end])
        if num_drafts:
            token_ids.append(np.asarray(state.drafts, dtype=np.int64))
        positions.append(state.positions(start, end + num_drafts, position_rows))
        slots.append(table[where // block_size] * block_size + where % block_size)
        for item in state.request.prompt.media:
            if item.span.offset < end and item.span.end > start:
                media.append(_media_rows(item, seq.request_id, start, end, row))
        if state.prompt_logprobs is not None and start < state.num_prompt_tokens:
            prompts.append(PromptRows(seq.request_id, start, min(end, state.num_prompt_tokens) - start, row))
        query_lens.append(len(where))
        context_lens.append(end + num_drafts)
        row += len(where)
        if seq.num_sampled_rows:
            sampled_rows += range(row - 1 - num_drafts, row)
            sampled_ids.append(seq.request_id)

    is_long = np.repeat([states[seq.request_id].is_long for seq in plan.scheduled], query_lens)

    def tensor(array: NDArray[np.int64] | list[int]) -> Tensor:
        return torch.from_numpy(np.asarray(array, dtype=np.int64)).to(device, non_blocking=True)

    return ForwardBatch(
        token_ids=tensor(np.concatenate(token_ids)),
        positions=tensor(np.concatenate(positions, axis=1)),
        is_long=torch.from_numpy(is_long).to(device, non_blocking=True) if is_long.any() else None,
        attention=AttentionBatch(
            slots=tensor(np.concatenate(slots)),
            block_tables=tensor(block_tables),
            query_lens=query_lens,
            context_lens=context_lens,
        ),
        media=media,
        sampled_rows=tensor(sampled_rows),
        sampled_ids=sampled_ids,
        prompts=prompts,
    )


def _media_rows(item: MediaItem, request_id: str, start: int, end: int, first_row: int) -> MediaRows:
    """The part of an item's span inside positions `start .. end`, whose first position is row `first_row`."""
    span = item.span
    low, high = max(span.offset, start), min(span.end, end)
    if span.is_embed is None:
        rows: slice | NDArray[np.int64] = slice(first_row + low - start, first_row + high - start)
        return MediaRows(request_id, item.content_hash, rows, slice(low - span.offset, high - span.offset))
    takes = np.asarray(span.is_embed)
    inside = takes[low - span.offset : high - span.offset]
    before = int(takes[: low - span.offset].sum())
    rows = np.flatnonzero(inside) + (first_row + low - start)
    return MediaRows(request_id, item.content_hash, rows, slice(before, before + int(inside.sum())))
