"""A step's plan in the making: what is left of its budgets, and what is in it already."""

from __future__ import annotations

from trifocal.engine.block_manager import BlockManager
from trifocal.engine.encoder_cache import EncoderCache
from trifocal.engine.limits import Limits
from trifocal.engine.sequence import Sequence
from trifocal.engine.steps_in_flight import Planned
from trifocal.types import EncodeJob, MediaItem, ScheduledNew, ScheduledSeq, StepPlan


class PlanBuilder:
    """Sequences are put into it one after the other, each with as many tokens as the step has room for."""

    def __init__(self, limits: Limits, blocks: BlockManager, encoder_cache: EncoderCache) -> None:
        self._limits = limits
        self._blocks = blocks
        self._encoder_cache = encoder_cache
        self._encode_budget = limits.max_num_batched_tokens
        self._scheduled: dict[str, ScheduledSeq] = {}
        self._new: list[ScheduledNew] = []
        self._encode: list[EncodeJob] = []
        self.budget = limits.max_num_batched_tokens
        self.planned: dict[str, Planned] = {}
        self.has_preempted = False
        self.num_encoder_hits = 0

    def __bool__(self) -> bool:
        return bool(self._scheduled)

    def __contains__(self, seq: Sequence) -> bool:
        return seq.request_id in self._scheduled

    @property
    def has_room(self) -> bool:
        """Whether sequences that wait may begin."""
        return self.budget > 0 and not self.has_preempted

    def plan(self, step_id: int, finished: list[str]) -> StepPlan:
        """The plan; workers are to forget the `finished` requests."""
        return StepPlan(
            step_id=step_id,
            scheduled=list(self._scheduled.values()),
            new=self._new,
            encode=self._encode,
            free_embeds=self._encoder_cache.take_dropped(),
            finished=finished,
        )

    def within_budget(self, seq: Sequence) -> int:
        """How many of the tokens that the sequence lacks the step has room for."""
        num_tokens = min(seq.num_remaining, self.budget)
        return num_tokens if num_tokens == seq.num_remaining or self._limits.enable_chunked_prefill else 0

    def max_drafts(self, seq: Sequence, num_tokens: int) -> int:
        """How many tokens a worker may guess behind the sequence's next `num_tokens`.

        None unless a token is sampled behind these. It could not be kept beyond max_tokens, and where a sequence
        takes other rotary frequencies it is computed anew.
        """
        if self._limits.max_drafts == 0 or num_tokens < seq.num_remaining or seq.is_prompt_only:
            return 0
        most = min(self._limits.max_drafts, self.budget - num_tokens, seq.num_allowed - 1)
        if self._limits.short_context is not None and not seq.is_long:
            most = min(most, self._limits.short_context - seq.num_positions)
        return max(0, most)

    def put(self, seq: Sequence, num_tokens: int, max_drafts: int = 0) -> None:
        """Compute the sequence's next `num_tokens`, and drafts; there must be blocks and embeddings for them."""
        start = seq.num_computed_tokens
        is_last = num_tokens == seq.num_remaining
        num_sampled_rows = 1 + max_drafts if is_last and not seq.is_prompt_only else 0
        num_tokens += max_drafts
        added = self._blocks.grow(seq, start + num_tokens)
        if seq.is_new_to_workers:
            self._new.append(seq.introduce())
            seq.is_new_to_workers = False
            added = list(seq.block_ids)
        self._scheduled[seq.request_id] = ScheduledSeq(
            seq.request_id, start, num_tokens, added, num_sampled_rows, max_drafts
        )
        ends = is_last and seq.is_prompt_only
        self.planned[seq.request_id] = Planned(seq, start, start + num_tokens, seq.block_ids, num_sampled_rows, ends)
        self.budget -= num_tokens
        seq.num_computed_tokens += num_tokens
        seq.num_in_flight += num_sampled_rows
        self._blocks.publish(seq)

    # ------------------------------------------------------------------------------------------ media

    def secure_media(self, seq: Sequence, num_tokens: int) -> int:
        """Pin or plan the embeddings that the next `num_tokens` need; returns how many tokens have theirs."""
        start = seq.num_computed_tokens
        items = [item for item in seq.media if item.span.offset < start + num_tokens and item.span.end > start]
        if not self._limits.enable_chunked_prefill and not self._can_hold(items):
            return 0
        for item in items:
            if not self._secure(seq, item):
                return max(0, item.span.offset - start)
        return num_tokens

    def _can_hold(self, items: list[MediaItem]) -> bool:
        return self._encoder_cache.can_hold({item.content_hash: self._limits.num_bytes(item) for item in items})

    def _secure(self, seq: Sequence, item: MediaItem) -> bool:
        if self._encoder_cache.is_pinned(seq, item.content_hash):
            return True
        if self._encoder_cache.pin(seq, item.content_hash):
            self.num_encoder_hits += 1
            return True
        num_embeds = item.span.num_embeds
        is_over = num_embeds > self._encode_budget and bool(self._encode)  # one item always goes, however large
        if is_over and self._limits.enable_chunked_prefill:
            return False
        if not self._encoder_cache.add(seq, item.content_hash, self._limits.num_bytes(item)):
            return False
        self._encode_budget -= num_embeds
        self._encode.append(EncodeJob(seq.request_id, seq.media.index(item), item.content_hash))
        return True
