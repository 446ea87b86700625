"""`Meter`: takes one answer into the metrics, the request's line in the log and the sign that the engine moves."""

from __future__ import annotations

from collections.abc import Sequence

from trifocal.api.service import Service
from trifocal.engine.async_engine import RequestStream
from trifocal.engine.output import ChoiceCount
from trifocal.http.context import RequestContext
from trifocal.sampling_params import SamplingParams
from trifocal.types import Delta


class Meter:
    """The `AnswerObserver` of a server. Times are `time.perf_counter`."""

    def __init__(
        self,
        service: Service,
        context: RequestContext,
        num_prompt_tokens: Sequence[int],
        params: SamplingParams,
        streams: Sequence[RequestStream],
    ) -> None:
        self._metrics = service.metrics
        self._progress = service.progress
        self._context = context
        self._n = params.n
        self._opened_at = [stream.opened_at for stream in streams]
        self._counts: list[list[ChoiceCount]] = [[] for _ in streams]  # of the choices that have ended
        context.num_prompt_tokens = sum(num_prompt_tokens)
        for number in num_prompt_tokens:
            self._metrics.request_prompt_tokens.observe(number)
            self._metrics.request_params_n.observe(params.n)
            if params.max_tokens is not None:
                self._metrics.request_params_max_tokens.observe(params.max_tokens)

    def begin(self) -> None:
        """The engine has work of this request."""
        self._progress.begin()

    def moved(self) -> None:
        """Something came from the engine."""
        self._progress.moved()

    def end(self, num_open: int, reason: str) -> None:
        """The request has ended; so many choices did for no reason of their own, but for `reason`."""
        self._progress.end()
        for _ in range(num_open):
            self._metrics.finished(reason)

    def tokens_come(self, count: ChoiceCount, num_tokens: int, now: float) -> None:
        context = self._context
        context.num_output_tokens += num_tokens
        if context.first_token is None:
            context.first_token = now
        if count.num_tokens == 0:
            self._metrics.time_to_first_token.observe(now - context.arrived)
        else:
            self._metrics.inter_token_latency.observe((now - count.last_at) / num_tokens)

    def choice_ends(self, index: int, count: ChoiceCount, delta: Delta, now: float) -> None:
        metrics, prompt = self._metrics, index // self._n
        metrics.finished(str(delta.finish_reason))
        metrics.e2e_request_latency.observe(now - self._context.arrived)
        metrics.request_generation_tokens.observe(count.num_tokens)
        metrics.request_num_preemptions.observe(delta.num_preemptions)
        if count.num_tokens > 1:
            metrics.time_per_output_token.observe((count.last_at - count.first_at) / (count.num_tokens - 1))
        if count.num_tokens:
            metrics.computed(self._opened_at[prompt], delta.scheduled_at, count.first_at, count.last_at)
        siblings = self._counts[prompt]
        siblings.append(count)
        if len(siblings) == self._n:
            metrics.request_max_num_generation_tokens.observe(max(each.num_tokens for each in siblings))
