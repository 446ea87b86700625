"""`Answer`: the deltas of one API request, counted and measured, with one place to abort them all."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from trifocal.api.openai.responses import Usage
from trifocal.engine.async_engine import RequestStream
from trifocal.errors import EngineDeadError, TrifocalError
from trifocal.http.context import Visit
from trifocal.http.service import Service
from trifocal.log import get_logger
from trifocal.sampling_params import SamplingParams
from trifocal.types import Delta, Prompt

logger = get_logger(__name__)
DeltaStream = RequestStream | AsyncGenerator[Delta, None]
_serial = itertools.count()


@dataclass
class _Choice:
    """What has been seen of one choice."""

    num_tokens: int = 0
    texts: list[str] = field(default_factory=list)  # kept for --enable-log-outputs alone
    first_at: float = 0.0
    last_at: float = 0.0


class Answer:
    """Deltas of all choices of all prompts of a request; `delta.index` is prompt index * n + choice.

    Iterating raises `RequestError` where the engine gave a choice up and `EngineDeadError` where it died.
    Whoever opened it closes it: that aborts what still runs.
    """

    @classmethod
    async def open(
        cls, service: Service, visit: Visit, request_id: str, prompts: Sequence[Prompt], params: SamplingParams
    ) -> Answer:
        """Submit every prompt, or none (`RequestError` if one can never run), and wait for the first delta.

        So whatever fails before the first token raises here, early enough for an HTTP status.
        """
        streams: list[RequestStream] = []
        try:
            for prompt in prompts:
                # A client may use one x-request-id for several requests at a time; the engine's ids are unique.
                streams.append(await service.engine.submit(f"{request_id}-{next(_serial)}", prompt, params))
        except BaseException:
            await _close_all(streams)
            raise
        answer = cls(service, visit, prompts, streams, params)
        try:
            answer._peeked = await anext(answer)
        except BaseException:
            await answer.aclose()
            raise
        return answer

    def __init__(
        self,
        service: Service,
        visit: Visit,
        prompts: Sequence[Prompt],
        streams: Sequence[RequestStream],
        params: SamplingParams,
    ) -> None:
        self.num_prompt_tokens = sum(len(prompt.token_ids) for prompt in prompts)
        self.num_choices = params.n * len(prompts)
        self._n = params.n
        self._metrics = service.metrics
        self._progress = service.progress
        self._visit = visit
        self._logs_text = service.args.enable_log_outputs
        self._streams = streams
        self._choices = [_Choice() for _ in range(self.num_choices)]
        self._open = set(range(self.num_choices))
        self._cached = [0] * len(prompts)
        self._num_open = [params.n] * len(prompts)
        self._deltas: DeltaStream = streams[0] if len(streams) == 1 else _merged(streams, params.n)
        self._peeked: Delta | None = None
        self._end = "abort"  # why choices ended that have no finish_reason of their own
        self._is_closed = False
        self._progress.begin()
        visit.num_prompt_tokens = self.num_prompt_tokens
        for prompt in prompts:
            self._metrics.request_prompt_tokens.observe(len(prompt.token_ids))
            self._metrics.request_params_n.observe(params.n)
            if params.max_tokens is not None:
                self._metrics.request_params_max_tokens.observe(params.max_tokens)

    def usage(self) -> Usage:
        """OpenAI's `usage`, of what has come so far."""
        return self._usage(sum(choice.num_tokens for choice in self._choices))

    def usage_before_tokens(self) -> Usage:
        """`usage` as it was when the prompts had been computed."""
        return self._usage(0)

    def _usage(self, generated: int) -> Usage:
        return {
            "prompt_tokens": self.num_prompt_tokens,
            "completion_tokens": generated,
            "total_tokens": self.num_prompt_tokens + generated,
            "prompt_tokens_details": {"cached_tokens": sum(self._cached)},
        }

    def __aiter__(self) -> Answer:
        return self

    async def __anext__(self) -> Delta:
        if self._peeked is not None:
            delta, self._peeked = self._peeked, None
            return delta
        if not self._open:
            raise StopAsyncIteration
        try:
            delta = await anext(self._deltas)
        except StopAsyncIteration:
            self._end = "error"
            raise EngineDeadError("the engine ended an answer early") from None
        except TrifocalError:
            self._end = "error"
            raise
        self._count(delta)
        return delta

    async def aclose(self) -> None:
        """Abort what still runs; safe at any time and more than once."""
        if self._is_closed:
            return
        self._is_closed = True
        self._progress.end()
        for _ in self._open:
            self._metrics.finished(self._end)
        self._open.clear()
        await _close_all([self._deltas, *self._streams])

    def _count(self, delta: Delta) -> None:
        choice, now = self._choices[delta.index], time.perf_counter()
        num_new = len(delta.token_ids)
        self._progress.moved()
        self._visit.num_output_tokens += num_new
        if self._visit.first_token is None and num_new:
            self._visit.first_token = now
        if num_new and choice.num_tokens == 0:
            choice.first_at = now
            self._metrics.time_to_first_token.observe(now - self._visit.arrived)
        elif num_new:
            self._metrics.inter_token_latency.observe((now - choice.last_at) / num_new)
        if num_new:
            choice.num_tokens += num_new
            choice.last_at = now
        if delta.index % self._n == 0:  # further choices find the first one's blocks: that is no saving to the client
            self._cached[delta.index // self._n] = delta.num_cached_tokens
        if self._logs_text:
            choice.texts.append(delta.text)
        if delta.finish_reason is not None:
            self._open.discard(delta.index)
            if self._logs_text:
                logger.info("output %d, finish_reason %s: %r", delta.index, delta.finish_reason, "".join(choice.texts))
            self._finish(choice, delta, delta.finish_reason, now)

    def _finish(self, choice: _Choice, delta: Delta, reason: str, now: float) -> None:
        self._metrics.finished(reason)
        self._metrics.e2e_request_latency.observe(now - self._visit.arrived)
        self._metrics.request_generation_tokens.observe(choice.num_tokens)
        self._metrics.request_num_preemptions.observe(delta.num_preemptions)
        if choice.num_tokens > 1:
            seconds = choice.last_at - choice.first_at
            self._metrics.time_per_output_token.observe(seconds / (choice.num_tokens - 1))
        prompt = delta.index // self._n
        if choice.num_tokens:
            opened = self._streams[prompt].opened_at
            self._metrics.computed(opened, delta.scheduled_at, choice.first_at, choice.last_at)
        self._num_open[prompt] -= 1
        if self._num_open[prompt] == 0:
            siblings = self._choices[prompt * self._n : (prompt + 1) * self._n]
            self._metrics.request_max_num_generation_tokens.observe(max(each.num_tokens for each in siblings))


async def _close_all(streams: Sequence[DeltaStream]) -> None:
    for stream in streams:
        with suppress(EngineDeadError):  # it holds nothing any more
            await stream.aclose()


async def _merged(streams: Sequence[RequestStream], n: int) -> AsyncGenerator[Delta, None]:
    """The deltas of several prompts in order of arrival, choices numbered through."""
    queue: asyncio.Queue[Delta | Exception | None] = asyncio.Queue()

    async def pump(first_index: int, stream: RequestStream) -> None:
        try:
            async for delta in stream:
                queue.put_nowait(replace(delta, index=first_index + delta.index))
            queue.put_nowait(None)
        except Exception as error:
            queue.put_nowait(error)

    tasks = [asyncio.create_task(pump(number * n, stream)) for number, stream in enumerate(streams)]
    try:
        num_running = len(tasks)
        while num_running:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                num_running -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
