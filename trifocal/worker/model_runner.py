"""Runs planned steps on one device: encode media, forward, sample."""

from __future__ import annotations

from dataclasses import replace
from time import perf_counter

import torch
from torch import Tensor

from trifocal.log import get_logger
from trifocal.models.base import Model
from trifocal.types import EncodeJob, StepPlan, StepResult, TokenLogprobs
from trifocal.worker.context import WorkerContext
from trifocal.worker.graphs import GraphRunner
from trifocal.worker.input_batch import ForwardBatch, SequenceState, build_batch
from trifocal.worker.sampler import Sampled, Sampler

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
        self.states: dict[str, SequenceState] = {}
        self.embeds: dict[bytes, Tensor] = {}

    def execute(self, plan: StepPlan) -> StepResult:
        """One step. A fault of one request (its media, its logits) is reported for it; the others go on."""
        self._apply(plan)
        result = self._compute(plan) if plan.scheduled else StepResult(plan.step_id, {})
        return replace(result, num_sequences=len(self.states), num_embeds=len(self.embeds))

    def _compute(self, plan: StepPlan) -> StepResult:
        failed, encode_s = self._timed_encode(plan.encode)
        batch = build_batch(
            plan,
            self.states,
            block_size=self.graphs.attention.cache.block_size,
            position_rows=self.model.position_rows,
            device=self.device,
        )
        inputs, errors = self._embed(batch, failed)
        hidden = self.graphs(inputs, batch.positions, batch.attention, batch.is_long)
        token_ids, logprobs = self._sample(batch, hidden, errors)
        return StepResult(plan.step_id, token_ids, logprobs, errors, frozenset(failed), encode_s)

    def _apply(self, plan: StepPlan) -> None:
        for request_id in plan.finished:
            self.states.pop(request_id, None)
            self.sampler.forget(request_id)
        for content_hash in plan.free_embeds:
            self.embeds.pop(content_hash, None)
        for new in plan.new:
            self.states[new.request.request_id] = SequenceState.start(new)
        for seq in plan.scheduled:
            self.states[seq.request_id].block_ids.extend(seq.new_block_ids)

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

    def _embed(self, batch: ForwardBatch, failed: dict[bytes, str]) -> tuple[Tensor, dict[str, str]]:
        """The rows of the step's input, and the requests that lack media; what these lack is added to `failed`."""
        inputs = self.model.embed(batch.token_ids)
        errors: dict[str, str] = {}
        for part in batch.media:
            embeds = self.embeds.get(part.content_hash)
            if embeds is None:  # its encoding failed, in this step or the one before
                reason = failed.setdefault(part.content_hash, "the request's media could not be encoded")
                errors.setdefault(part.request_id, reason)
            else:
                rows = part.rows if isinstance(part.rows, slice) else torch.from_numpy(part.rows).to(self.device)
                inputs[rows] = embeds[part.embeds].to(inputs.dtype)
        return inputs, errors

    def _sample(
        self, batch: ForwardBatch, hidden: Tensor, errors: dict[str, str]
    ) -> tuple[dict[str, int], dict[str, TokenLogprobs]]:
        """Tokens and log-probabilities by request; requests for which none can be chosen are added to `errors`."""
        if not batch.sampled_ids:
            return {}, {}
        states = [self.states[request_id] for request_id in batch.sampled_ids]
        sampled = self._choose(hidden[batch.sampled_rows], states)
        token_ids = {}
        for index, (request_id, state) in enumerate(zip(batch.sampled_ids, states, strict=True)):
            token_id = sampled.token_ids[index]
            state.append(token_id)  # even for one that failed: a step planned meanwhile counts on it
            if index in sampled.errors:
                errors.setdefault(request_id, sampled.errors[index])
            if request_id not in errors:
                token_ids[request_id] = token_id
        return token_ids, {batch.sampled_ids[index]: value for index, value in sampled.logprobs.items()}

    def _choose(self, hidden: Tensor, states: list[SequenceState]) -> Sampled:
        """Sample all rows together; if that fails, one by one, so that only the culprit fails."""
        logits = self.model.logits(hidden)
        try:
            return self.sampler(logits, states)
        except Exception as error:
            logger.warning("sampling %d rows together failed (%s): now one by one", len(states), type(error).__name__)
        return self.sampler.one_by_one(self.model.logits(hidden), states)  # anew: sampling changes logits in place
