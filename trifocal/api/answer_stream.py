"""`AnswerStream`: the deltas of one API request, counted and measured, with one place to abort them all."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from dataclasses import replace
from time import perf_counter

from trifocal.api.meter import Meter
from trifocal.api.service import Service
from trifocal.engine.async_engine import RequestStream
from trifocal.engine.output import Answer
from trifocal.errors import EngineDeadError, TrifocalError
from trifocal.http.context import RequestContext
from trifocal.log import get_logger
from trifocal.sampling_params import SamplingParams
from trifocal.types import Delta, Prompt

logger = get_logger(__name__)
DeltaStream = RequestStream | AsyncGenerator[Delta, None]
_serial = itertools.count()


class AnswerStream:
    """Deltas of all choices of all prompts of a request, numbered through; `answer` grows by each.

    Log-probabilities of a prompt, if they are asked for, are on the first delta of each of its choices.
    Iterating raises `RequestError` where the engine gave a choice up and `EngineDeadError` where it died.
    Whoever opened it closes it: that aborts what still runs.
    """

    @classmethod
    async def open(
        cls,
        service: Service,
        context: RequestContext,
        request_id: str,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        *,
        keeps_text: bool,
    ) -> AnswerStream:
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
        logs_text = service.args.enable_log_outputs
        meter = Meter(service, context, [len(prompt.token_ids) for prompt in prompts], params, streams)
        answer = Answer(request_id, prompts, params.n, observer=meter, keeps_text=keeps_text or logs_text)
        shares = params.n > 1 and params.prompt_logprobs is not None
        opened = cls(answer, meter, streams, shares_prompt_logprobs=shares, logs_text=logs_text)
        try:
            opened._ready.appendleft(await anext(opened))
        except BaseException:
            await opened.aclose()
            raise
        return opened

    def __init__(
        self,
        answer: Answer,
        meter: Meter,
        streams: Sequence[RequestStream],
        *,
        shares_prompt_logprobs: bool,
        logs_text: bool,
    ) -> None:
        self.answer = answer
        self._meter = meter
        self._streams = streams
        self._logs_text = logs_text
        self._deltas: DeltaStream = streams[0] if len(streams) == 1 else _merged(streams, answer.n)
        self._ready: deque[Delta] = deque()
        self._shares_prompt_logprobs = shares_prompt_logprobs
        self._told: set[int] = set()  # prompts whose first choice has begun
        self._held: dict[int, list[Delta]] = {}  # deltas of the others, by prompt
        self._begun: set[int] = set()  # choices
        self._end = "abort"  # why choices ended that have no finish_reason of their own
        self._is_closed = False
        meter.begin()

    def __aiter__(self) -> AnswerStream:
        return self

    async def __anext__(self) -> Delta:
        while not self._ready:
            if not self.answer.open:
                raise StopAsyncIteration
            try:
                delta = await anext(self._deltas)
            except StopAsyncIteration:
                self._end = "error"
                raise EngineDeadError("the engine ended an answer early") from None
            except TrifocalError:
                self._end = "error"
                raise
            self._take(delta)
            if not self._shares_prompt_logprobs:
                return delta
            self._sort(delta)
        return self._ready.popleft()

    def _sort(self, delta: Delta) -> None:
        """Put what can be read now into `_ready`: the first choice alone brings its prompt's log-probabilities, and the
        others wait for them."""
        prompt, choice = divmod(delta.index, self.answer.n)
        if choice and prompt not in self._told:
            self._held.setdefault(prompt, []).append(delta)
            return
        self._told.add(prompt)
        for each in (delta, *self._held.pop(prompt, ())):
            if each.index not in self._begun:
                self._begun.add(each.index)
                each = replace(each, prompt_logprobs=self.answer.outputs[prompt].prompt_logprobs)
            self._ready.append(each)

    def _take(self, delta: Delta) -> None:
        now = perf_counter()
        self._meter.moved()
        self.answer.count(delta.index, len(delta.token_ids), now)
        self.answer.extend(delta, now)
        if delta.finish_reason is not None and self._logs_text:
            text = self.answer.choice(delta.index).text
            logger.info("output %d, finish_reason %s: %r", delta.index, delta.finish_reason, text)

    async def aclose(self) -> None:
        """Abort what still runs; safe at any time and more than once."""
        if self._is_closed:
            return
        self._is_closed = True
        self._meter.end(len(self.answer.open), self._end)
        self.answer.open.clear()
        await _close_all([self._deltas, *self._streams])


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
