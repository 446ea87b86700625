"""Runs planned steps on one device: encode media, forward, sample."""

from __future__ import annotations

from dataclasses import replace
from time import perf_counter

import torch
from torch import Tensor

from trifocal.log import get_logger
from trifocal.models.base import MediaRows, Model
from trifocal.types import EncodeJob, ScheduledNew, StepPlan, StepResult, TokenLogprobs
from trifocal.worker.context import WorkerContext
from trifocal.worker.drafter import Drafter
from trifocal.worker.graphs import GraphRunner
from trifocal.worker.input_batch import ForwardBatch, SequenceState, build_batch
from trifocal.worker.prompt_logprobs import extend_prompt_logprobs
from trifocal.worker.sampler import FAILED, Sampled, Sampler

logger = get_logger(__name__)


class ModelRunner:
    """Holds what plans are diffs against: sequence states and media embeddings."""

    def __init__(self, model: Model, graphs: GraphRunner, sampler: Sampler, context: WorkerContext) -> None:
        self.model = model
        self.graphs = graphs
        self.sampler = sampler
        self.platform = context.platform
        self.device = context.device
        self.pixels = context.pixels
        self.block_size: int = graphs.attention.cache.block_size
        self.drafter: Drafter | None = None
        self.states: dict[str, SequenceState] = {}
        self.embeds: dict[bytes, Tensor] = {}

    def execute(self, plan: StepPlan) -> StepResult:
        """One step. A fault of one request (its media, its logits) is reported for it; the others go on."""
        self._apply(plan)
        result = self._compute(plan) if plan.scheduled else StepResult(plan.step_id, {})
        return replace(result, num_sequences=len(self.states), num_embeds=len(self.embeds))

    def _compute(self, plan: StepPlan) -> StepResult:
        failed, encode_s = self._timed_encode(plan.encode)
        self._draft(plan)
        batch = build_batch(
            plan,
            self.states,
            block_size=self.block_size,
            position_rows=self.model.position_rows,
            device=self.device,
        )
        inputs, errors = self._embed(batch, failed)
        hidden = self.graphs(inputs, batch.positions, batch.attention, batch.is_long)
        errors |= {new.request.request_id: fault for new in plan.new if (fault := self._fault(new)) is not None}
        prompt_logprobs = self._prompt_logprobs(batch, hidden, errors)
        token_ids, logprobs = self._sample(batch, hidden, errors)
        return StepResult(
            plan.step_id,
            token_ids,
            logprobs,
            prompt_logprobs,
            errors=errors,
            failed_media=frozenset(failed),
            encode_s=encode_s,
        )

    def _apply(self, plan: StepPlan) -> None:
        for request_id in plan.finished:
            self.states.pop(request_id, None)
        for content_hash in plan.free_embeds:
            self.embeds.pop(content_hash, None)
        for new in plan.new:
            self.states[new.request.request_id] = SequenceState.start(new)
        for seq in plan.scheduled:
            self.states[seq.request_id].take_blocks(seq, self.block_size)

    def _fault(self, new: ScheduledNew) -> str | None:
        return self.states[new.request.request_id].fault

    def _draft(self, plan: StepPlan) -> None:
        """Guess tokens for the sequences that have room for some in this step."""
        if self.drafter is None:
            return
        for seq in plan.scheduled:
            if seq.max_drafts:
                state = self.states[seq.request_id]
                try:
                    state.drafts = self.drafter.draft(state, seq.max_drafts)[: seq.max_drafts]
                except Exception:
                    logger.exception("drafting tokens for request %s failed", seq.request_id)

    def _timed_encode(self, jobs: list[EncodeJob]) -> tuple[dict[bytes, str], float]:
        """As `_encode`, and the seconds it took; a device is waited for, which costs little beside the work itself."""
        if not jobs:
            return {}, 0.0
        self.platform.synchronize()
        started = perf_counter()
        failed = self._encode(jobs)
        self.platform.synchronize()
        return failed, perf_counter() - started

    def _encode(self, jobs: list[EncodeJob]) -> dict[bytes, str]:
        """Encode new media together; if that fails, one by one, so that only the culprit fails. Returns what failed."""
        items = [self.states[job.request_id].request.prompt.media[job.media_index] for job in jobs]
        try:
            encoded = list(self.model.encode([replace(item, pixels=self.pixels.array(item)) for item in items]))
        except Exception:
            if len(items) == 1:
                logger.exception("encoding one %s failed", items[0].modality)
                return {items[0].content_hash: f"the {items[0].modality} could not be encoded"}
            failed: dict[bytes, str] = {}
            for job in jobs:
                failed |= self._encode([job])
            return failed
        self.embeds |= {item.content_hash: embeds for item, embeds in zip(items, encoded, strict=True)}
        return {}

    def _embed(self, batch: ForwardBatch, failed: dict[bytes, str]) -> tuple[tuple[Tensor, ...], dict[str, str]]:
        """The inputs of the layers, and the requests that lack media; what these lack is added to `failed`."""
        media: list[MediaRows] = []
        errors: dict[str, str] = {}
        for part in batch.media:
            embeds = self.embeds.get(part.content_hash)
            if embeds is None:  # its encoding failed, in this step or the one before
                reason = failed.setdefault(part.content_hash, "the request's media could not be encoded")
                errors.setdefault(part.request_id, reason)
            else:
                rows = part.rows if isinstance(part.rows, slice) else torch.from_numpy(part.rows).to(self.device)
                media.append((rows, embeds[part.embeds]))
        return self.model.merge(batch.token_ids, media), errors

    def _prompt_logprobs(
        self, batch: ForwardBatch, hidden: Tensor, errors: dict[str, str]
    ) -> dict[str, list[TokenLogprobs | None]]:
        """Those of prompts whose end was computed. Requests for which there are none are added to `errors`."""
        complete: dict[str, list[TokenLogprobs | None]] = {}
        for part in batch.prompts:
            state = self.states[part.request_id]
            try:
                extend_prompt_logprobs(state, part, hidden, self.model.logits, self.sampler)
            except Exception as error:
                logger.exception("the log-probabilities of the prompt of request %s failed", part.request_id)
                reason = str(error) if isinstance(error, ValueError) else "the server's log says more"
                errors.setdefault(
                    part.request_id, f"the log-probabilities of the prompt could not be computed: {reason}"
                )
            if part.start + part.num == state.num_prompt_tokens and part.request_id not in errors:
                found, state.prompt_logprobs = state.prompt_logprobs, None
                complete[part.request_id] = found or []
        return complete

    def _sample(
        self, batch: ForwardBatch, hidden: Tensor, errors: dict[str, str]
    ) -> tuple[dict[str, list[int]], dict[str, list[TokenLogprobs]]]:
        """Tokens and log-probabilities by request; requests for which none can be chosen are added to `errors`."""
        if not batch.sampled_ids:
            return {}, {}
        states = [self.states[request_id] for request_id in batch.sampled_ids]
        sampled = self._choose(hidden[batch.sampled_rows], states)
        token_ids: dict[str, list[int]] = {}
        logprobs: dict[str, list[TokenLogprobs]] = {}
        first = 0
        for request_id, state in zip(batch.sampled_ids, states, strict=True):
            rows = _kept(sampled.token_ids, first, state.drafts)
            first += 1 + len(state.drafts)
            state.drafts = []
            chosen = [sampled.token_ids[row] for row in rows]
            error = self._append(state, chosen)  # even for one that failed: a step planned meanwhile counts on it
            error = next((sampled.errors[row] for row in rows if row in sampled.errors), error)
            if error is not None:
                errors.setdefault(request_id, error)
            if request_id not in errors:
                token_ids[request_id] = chosen
                if state.request.params.logprobs is not None:
                    logprobs[request_id] = [sampled.logprobs[row] for row in rows]
        return token_ids, logprobs

    def _append(self, state: SequenceState, token_ids: list[int]) -> str | None:
        """Append sampled tokens; returns what is wrong with the request, if its processors fail."""
        error = None
        for token_id in token_ids:
            try:
                state.append(token_id)
            except Exception:
                logger.exception("a logits processor failed for request %s", state.request.request_id)
                error = FAILED
        return error

    def _choose(self, hidden: Tensor, states: list[SequenceState]) -> Sampled:
        """Sample all rows together; if that fails, one by one, so that only the culprit fails."""
        logits = self.model.logits(hidden)
        try:
            return self.sampler(logits, states)
        except Exception as error:
            logger.warning(
                "sampling %d rows together failed (%s); they are sampled one by one", len(states), type(error).__name__
            )
        return self.sampler.one_by_one(self.model.logits(hidden), states)  # anew: sampling changes logits in place


def _kept(token_ids: list[int], first: int, drafts: list[int]) -> range:
    """Rows from `first` on whose tokens are the sequence's: up to the first that is not the draft it was to be."""
    for index, draft in enumerate(drafts):
        if token_ids[first + index] != draft:
            return range(first, first + index + 1)
    return range(first, first + len(drafts) + 1)
