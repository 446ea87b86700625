"""What a worker remembers of each sequence between steps, and the tensors of one step made from it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trifocal.attention.base import AttentionBatch
from trifocal.types import MediaItem, Request, ScheduledNew, StepPlan

_GROW_BY = 256


@dataclass(slots=True)
class SequenceState:
    """One sequence in a worker. It appends the tokens it samples itself, so the next step can be planned before
    they are known to anybody else."""

    request: Request
    token_ids: NDArray[np.int64]  # with room to grow; `num_tokens` of them are valid
    num_tokens: int
    is_long: bool = False  # takes longrope's long factors
    block_ids: list[int] = field(default_factory=list)

    @classmethod
    def start(cls, new: ScheduledNew) -> SequenceState:
        """State of a sequence that starts, or starts again."""
        known = [*new.request.prompt.token_ids, *new.output_token_ids]
        token_ids = np.zeros(len(known) + _GROW_BY, dtype=np.int64)
        token_ids[: len(known)] = known
        return cls(new.request, token_ids, len(known), new.is_long)

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.prompt.token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Tokens generated so far."""
        return self.num_tokens - self.num_prompt_tokens

    @property
    def output_token_ids(self) -> NDArray[np.int64]:
        """Tokens generated so far."""
        return self.token_ids[self.num_prompt_tokens : self.num_tokens]

    def append(self, token_id: int) -> None:
        """Add a sampled token."""
        if self.num_tokens == len(self.token_ids):
            self.token_ids = np.concatenate([self.token_ids, np.zeros_like(self.token_ids)])
        self.token_ids[self.num_tokens] = token_id
        self.num_tokens += 1

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
class ForwardBatch:
    """The tensors of one step: token_ids int64 [n], positions int64 [rows, n], rows of the logits that are sampled.

    `is_long`, bool [n], marks tokens that take longrope's long factors; None if none does.
    """

    token_ids: Tensor
    positions: Tensor
    is_long: Tensor | None
    attention: AttentionBatch
    media: list[MediaRows]
    sampled_rows: Tensor
    sampled_ids: list[str]


def build_batch(
    plan: StepPlan, states: dict[str, SequenceState], *, block_size: int, position_rows: int, device: torch.device
) -> ForwardBatch:
    """Lay the plan's sequences out one after the other."""
    token_ids, positions, slots, media = [], [], [], []
    sampled_rows, sampled_ids, row = [], [], 0
    most_blocks = max(len(states[seq.request_id].block_ids) for seq in plan.scheduled)
    block_tables = np.zeros((len(plan.scheduled), most_blocks), dtype=np.int64)
    for index, seq in enumerate(plan.scheduled):
        state = states[seq.request_id]
        end = seq.start + seq.num_tokens
        table = np.asarray(state.block_ids, dtype=np.int64)
        block_tables[index, : len(table)] = table
        where = np.arange(seq.start, end)
        token_ids.append(state.token_ids[seq.start : end])
        positions.append(state.positions(seq.start, end, position_rows))
        slots.append(table[where // block_size] * block_size + where % block_size)
        for item in state.request.prompt.media:
            if item.span.offset < end and item.span.end > seq.start:
                media.append(_media_rows(item, seq.request_id, seq.start, end, row))
        row += seq.num_tokens
        if seq.samples:
            sampled_rows.append(row - 1)
            sampled_ids.append(seq.request_id)

    query_lens = [seq.num_tokens for seq in plan.scheduled]
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
            context_lens=[seq.start + seq.num_tokens for seq in plan.scheduled],
        ),
        media=media,
        sampled_rows=tensor(sampled_rows),
        sampled_ids=sampled_ids,
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
