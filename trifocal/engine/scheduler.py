"""The scheduler: which sequences compute how many tokens in the next step. Policy only, no torch.

There is one progress counter per sequence and no phases: prefill in chunks, a prefix hit, resumption after
preemption and decoding are all "compute the next positions". `schedule` may be called while the step before is still
running: tokens in flight are counted, their ids are not needed. Where workers may draft, a step is planned with room
for all drafts of the steps in flight and of its own; `update` takes back what was kept free in vain.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from dataclasses import replace
from time import perf_counter

from trifocal.engine.block_manager import BlockManager
from trifocal.engine.encoder_cache import EncoderCache
from trifocal.engine.limits import Limits, check, clip_max_tokens
from trifocal.engine.plan_builder import PlanBuilder
from trifocal.engine.sequence import Sequence
from trifocal.engine.steps_in_flight import Planned, StepsInFlight
from trifocal.engine.turns import Turns
from trifocal.errors import RequestError
from trifocal.types import (
    STEP_TOKEN_BOUNDS,
    EngineStats,
    Request,
    StepPlan,
    StepResult,
    TokenOutput,
)


class Scheduler:
    """Owns every live sequence, the KV blocks and the encoder cache's policy."""

    def __init__(self, limits: Limits, blocks: BlockManager, encoder_cache: EncoderCache) -> None:
        self.limits = limits
        self.blocks = blocks
        self.encoder_cache = encoder_cache
        self._seqs: dict[str, Sequence] = {}
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._forget: list[str] = []  # what the workers are to drop with the next plan
        self._in_flight = StepsInFlight(blocks.block_size)
        self._turns = Turns(limits.max_num_batched_tokens)
        self._last_step_id = 0
        self._num_steps = 0
        self._num_preemptions = 0
        self._num_prompt_tokens = 0
        self._num_generation_tokens = 0
        self._prefix_queries = 0
        self._prefix_hits = 0
        self._num_media_encoded = 0
        self._media_encode_s = 0.0
        self._encoder_hits = 0
        self._worker_sequences = 0
        self._worker_embeds = 0
        self._num_step_tokens = 0
        self._steps_by_tokens = [0] * (len(STEP_TOKEN_BOUNDS) + 1)

    # ------------------------------------------------------------------------------------------ requests

    def add(self, request: Request) -> None:
        """Queue a request. Raises `RequestError` if it could never run."""
        check(request.prompt, request.params, self.limits)
        clipped = clip_max_tokens(request.params, len(request.prompt.token_ids), self.limits.context_len)
        if clipped is not request.params:  # the caller did not know how much room this engine has
            request = replace(request, params=clipped)
        if request.request_id in self._seqs:
            raise RequestError(f"request id {request.request_id!r} is already in use", param="request_id")
        seq = Sequence(request, list(request.output_token_ids))
        self._seqs[request.request_id] = seq
        self._waiting.append(seq)

    def abort(self, request_id: str) -> None:
        """Forget a request wherever it is; unknown ids are ignored (it may have just finished)."""
        seq = self._seqs.get(request_id)
        if seq is not None:
            self._remove(seq)

    @property
    def has_work(self) -> bool:
        """Whether a request is alive, or workers are still to be told what to forget."""
        return bool(self._seqs) or self._has_due

    @property
    def _has_due(self) -> bool:
        return bool(self._forget) or self.encoder_cache.has_dropped

    # ------------------------------------------------------------------------------------------ planning

    def schedule(self) -> StepPlan | None:
        """Plan the next step, or None if nothing can be computed now (all wait for tokens in flight).

        When nothing can be computed, what workers are to forget makes a step of its own.
        """
        builder = self._build()
        while not builder and self._is_stuck():
            self._preempt(max(self._running, key=lambda seq: seq.order))
            builder = self._build()
        if not (builder or self._has_due):
            return None
        self._last_step_id += 1
        self._num_steps += bool(builder)
        self._in_flight.add(self._last_step_id, builder.planned)
        self._turns.begin(builder.planned.values())
        forget, self._forget = self._forget, []
        plan = builder.plan(self._last_step_id, forget)
        self._num_media_encoded += len(plan.encode)
        if builder:
            self._num_step_tokens += plan.num_tokens
            self._steps_by_tokens[bisect_left(STEP_TOKEN_BOUNDS, plan.num_tokens)] += 1
        return plan

    def _build(self) -> PlanBuilder:
        limits = self.limits
        if limits.short_context is not None:
            self._restart_outgrown()
        builder = PlanBuilder(limits, self.blocks, self.encoder_cache)
        for seq in sorted(self._running, key=lambda seq: (seq.num_remaining > 1, seq.order)):  # decodes first, by age
            if not (builder and self._turns.is_resting(seq)):
                self._schedule_running(seq, builder)
        while self._waiting and builder.has_room and len(self._running) < limits.max_num_seqs:
            if not self._schedule_waiting(self._waiting[0], builder):
                break
            self._running.append(self._waiting.popleft())
        for seq in self._running:
            self._unpin_computed(seq)
        self._encoder_hits += builder.num_encoder_hits
        return builder

    def _restart_outgrown(self) -> None:
        """Sequences that have become too long for longrope's short factors are computed anew with the long ones.

        A token of theirs that is in flight is waited for: it must be known.
        """
        outgrown = [seq for seq in self._running if self._has_outgrown(seq) and not seq.num_in_flight]
        for seq in sorted(outgrown, key=lambda seq: -seq.order):  # the oldest will be the first to start again
            self._preempt(seq)

    def _is_long(self, seq: Sequence) -> bool:
        return self.limits.short_context is not None and seq.num_positions > self.limits.short_context

    def _has_outgrown(self, seq: Sequence) -> bool:
        return self._is_long(seq) and not seq.is_long

    def _is_stuck(self) -> bool:
        """Whether no result can help: one sequence may wait for blocks of another that waits for its embeddings."""
        return len(self._running) > 1 and not self._in_flight

    def _schedule_running(self, seq: Sequence, builder: PlanBuilder) -> None:
        if seq.is_at_limit or self._has_outgrown(seq):  # it ends, or starts again, with the token in flight
            return
        if builder.has_preempted and seq not in self._running:  # preempted a moment ago
            return
        num_tokens = builder.within_budget(seq)
        max_drafts = self._drafts_with_room(seq, num_tokens, builder)
        while num_tokens and not self.blocks.can_grow(seq, seq.num_computed_tokens + num_tokens):
            if not self._preempt_newer_than(seq, builder):
                return  # it waits a step; the sequences planned in this one will finish and free blocks
        num_secured = builder.secure_media(seq, num_tokens)
        if num_secured:
            builder.put(seq, num_secured, max_drafts if num_secured == num_tokens else 0)

    def _drafts_with_room(self, seq: Sequence, num_tokens: int, builder: PlanBuilder) -> int:
        """Drafts behind the sequence's next `num_tokens`, as blocks are free: nobody is preempted for a guess."""
        max_drafts = builder.max_drafts(seq, num_tokens)
        while max_drafts and not self.blocks.can_grow(seq, seq.num_computed_tokens + num_tokens + max_drafts):
            max_drafts -= 1
        return max_drafts

    def _schedule_waiting(self, seq: Sequence, builder: PlanBuilder) -> bool:
        if seq.num_in_flight:  # preempted while a step was running: its token arrives with that step's result
            return False
        seq.begin(is_long=self._is_long(seq))
        # Hidden states of a cached beginning are not there any more.
        num_hit = 0 if seq.needs_prompt_logprobs else self.blocks.take_prefix(seq)
        seq.num_computed_tokens = num_hit
        num_tokens = builder.within_budget(seq)
        if num_tokens and self.blocks.can_grow(seq, num_hit + num_tokens):
            num_tokens = builder.secure_media(seq, num_tokens)
        else:
            num_tokens = 0
        if num_tokens == 0:
            self._reset(seq)
            return False
        if not seq.has_started:
            seq.has_started = True
            seq.scheduled_at = perf_counter()
            seq.num_cached_tokens = num_hit
            self._num_prompt_tokens += seq.num_prompt_tokens
        if not seq.needs_prompt_logprobs:
            self._prefix_queries += seq.num_tokens
            self._prefix_hits += num_hit
        builder.put(seq, num_tokens, self._drafts_with_room(seq, num_tokens, builder))
        return True

    def _preempt_newer_than(self, seq: Sequence, builder: PlanBuilder) -> bool:
        """Take the blocks of the newest sequence that is younger and has no work in this plan."""
        for victim in sorted(self._running, key=lambda other: -other.order):
            if victim.order <= seq.order:
                return False
            if victim not in builder:
                self._preempt(victim)
                builder.has_preempted = True
                return True
        return False

    def _preempt(self, seq: Sequence) -> None:
        self._running.remove(seq)
        self._forget.append(seq.request_id)
        self._reset(seq)
        self._waiting.appendleft(seq)
        seq.num_preemptions += 1
        self._num_preemptions += 1

    def _reset(self, seq: Sequence) -> None:
        """Back to nothing computed; tokens generated so far are kept."""
        self.blocks.release(seq)
        self.encoder_cache.release(seq)
        self._turns.forget(seq)
        seq.num_computed_tokens = 0
        seq.is_new_to_workers = True

    # ------------------------------------------------------------------------------------------ results

    def update(self, plan: StepPlan, result: StepResult, seconds: float = 0.0) -> list[TokenOutput]:
        """Advance by what a step of `seconds` produced; finished sequences give everything back."""
        outputs = self._fail(plan, result) if result.errors or result.failed_media else []
        planned = self._in_flight.remove(plan.step_id)
        self._turns.end(planned.values(), seconds)
        self._media_encode_s += result.encode_s
        self._worker_sequences, self._worker_embeds = result.num_sequences, result.num_embeds
        for work in planned.values():
            if (work.num_sampled_rows or work.ends) and self._is_alive(work.seq):
                outputs.append(self._settle(work, result))
        return outputs

    def _is_alive(self, seq: Sequence) -> bool:
        """Whether it goes on: it may have ended while a step was running, its id may belong to a new request by now."""
        return self._seqs.get(seq.request_id) is seq

    def _settle(self, work: Planned, result: StepResult) -> TokenOutput:
        """Take in what a step chose for a sequence, and take back what it kept room for in vain."""
        seq = work.seq
        token_ids = result.token_ids[seq.request_id] if work.num_sampled_rows else []
        seq.num_in_flight -= work.num_sampled_rows
        num_unused = work.num_sampled_rows - len(token_ids)
        if num_unused and seq.block_ids:  # else it was preempted meanwhile
            seq.num_computed_tokens -= num_unused
            self.blocks.shrink(seq, seq.num_computed_tokens)
        num_kept, reason, stop = (0, "length", None) if work.ends else seq.append(token_ids)
        self._num_generation_tokens += num_kept
        if reason is not None:
            self._remove(seq)
        elif seq.block_ids:
            self.blocks.publish(seq)
        logprobs = result.logprobs.get(seq.request_id)
        return TokenOutput(
            request_id=seq.request_id,
            token_ids=token_ids[:num_kept],
            logprobs=None if logprobs is None else logprobs[:num_kept],
            finish_reason=reason,
            stop_reason=stop,
            num_cached_tokens=seq.num_cached_tokens,
            scheduled_at=seq.scheduled_at,
            num_preemptions=seq.num_preemptions,
            prompt_logprobs=result.prompt_logprobs.get(seq.request_id),
        )

    def _fail(self, plan: StepPlan, result: StepResult) -> list[TokenOutput]:
        """End the requests that failed and those that share what they spoilt; nothing of it is to be used again."""
        for job in plan.encode:  # what failed in the step before was dropped then, and may be on its way again
            if job.content_hash in result.failed_media:
                self.encoder_cache.drop(job.content_hash)
        spoilt, blocks = self._in_flight.take_spoilt(result)
        self.blocks.withdraw(blocks)
        outputs = []
        for seq, message in spoilt.items():
            if self._is_alive(seq):
                self._remove(seq)
                outputs.append(TokenOutput(seq.request_id, [], finish_reason="error", stop_reason=message))
        return outputs

    def _remove(self, seq: Sequence) -> None:
        del self._seqs[seq.request_id]
        self._reset(seq)
        if seq in self._running:
            self._running.remove(seq)
            self._forget.append(seq.request_id)
        else:
            self._waiting.remove(seq)

    # ------------------------------------------------------------------------------------------ media and statistics

    def _unpin_computed(self, seq: Sequence) -> None:
        if seq.pinned:
            done = seq.num_computed_tokens  # a picture shown twice is not held from one span to the next
            needed = {item.content_hash for item in seq.media if item.span.offset < done < item.span.end}
            for content_hash in seq.pinned - needed:
                self.encoder_cache.unpin(seq, content_hash)

    def stats(self) -> EngineStats:
        return EngineStats(
            num_running=len(self._running),
            num_waiting=len(self._waiting),
            kv_blocks_used=self.blocks.num_used,
            kv_blocks_total=self.blocks.num_blocks,
            encoder_bytes_pinned=self.encoder_cache.num_pinned_bytes,
            encoder_bytes_cached=self.encoder_cache.num_bytes,
            encoder_items=self.encoder_cache.num_items,
            worker_sequences=self._worker_sequences,
            worker_embeds=self._worker_embeds,
            num_steps=self._num_steps,
            num_preemptions=self._num_preemptions,
            num_prompt_tokens=self._num_prompt_tokens,
            num_generation_tokens=self._num_generation_tokens,
            prefix_queries=self._prefix_queries,
            prefix_hits=self._prefix_hits,
            num_media_encoded=self._num_media_encoded,
            media_encode_s=self._media_encode_s,
            encoder_hits=self._encoder_hits,
            num_step_tokens=self._num_step_tokens,
            steps_by_tokens=tuple(self._steps_by_tokens),
        )
