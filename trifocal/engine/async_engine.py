"""`AsyncEngine`: what the server sees of the engine. Prompts go in, deltas come out; the engine is another process."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from trifocal.config import EngineConfig
from trifocal.engine import messages
from trifocal.engine.admission import Limits, check
from trifocal.engine.output import Choice, expand
from trifocal.engine.supervisor import Supervisor
from trifocal.tokenizer import Tokenizer
from trifocal.types import (
    Delta,
    EngineDeadError,
    EngineStats,
    Prompt,
    Request,
    RequestError,
    SamplingParams,
    TokenOutput,
)


@dataclass(frozen=True)
class Integrity:
    """What requests hold at this moment; all zero when none is alive."""

    num_requests: int
    kv_blocks: int
    encoder_bytes: int
    shared_bytes: int

    @property
    def is_clean(self) -> bool:
        """Whether nothing is held."""
        return (self.num_requests, self.kv_blocks, self.encoder_bytes, self.shared_bytes) == (0, 0, 0, 0)


class RequestStream:
    """The deltas of one request, over all its choices. `aclose` at any time, or cancelling its reader, ends it and
    frees what it holds."""

    def __init__(self, engine: AsyncEngine, choices: dict[str, Choice]) -> None:
        self._engine = engine
        self._choices = choices
        self._queue: asyncio.Queue[Delta | Exception] = asyncio.Queue()
        self._num_open = len(choices)

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self

    async def __anext__(self) -> Delta:
        if self._num_open == 0:
            raise StopAsyncIteration
        try:
            item = await self._queue.get()
        except asyncio.CancelledError:  # its reader is gone, as with a generator
            await self.aclose()
            raise
        if isinstance(item, Exception):
            self._num_open = 0
            await self.aclose()
            raise item
        if item.finish_reason is not None:
            self._num_open -= 1
        return item

    def put(self, item: Delta | Exception) -> None:
        """Called by the engine."""
        self._queue.put_nowait(item)

    async def aclose(self) -> None:
        """Abort whatever is still running; safe to call at any time and twice."""
        self._num_open = 0
        self._engine.end(self._choices)


@dataclass(frozen=True)
class _InFlight:
    """One sequence between `submit` and its end. Its pixels are in the media store and nowhere else."""

    choice: Choice
    stream: RequestStream
    has_media: bool


class AsyncEngine:
    """The engine process behind an asyncio interface. One lifetime: `start` .. `shutdown`.

    `died` is set when the engine ends uninvited; every stream then raises `EngineDeadError`.
    """

    def __init__(self, config: EngineConfig, supervisor: Supervisor, limits: Limits, tokenizer: Tokenizer) -> None:
        self.config = config
        self.max_model_len = limits.max_model_len
        self.died = asyncio.Event()
        self._supervisor = supervisor
        self._limits = limits
        self._tokenizer = tokenizer
        self._rng = random.Random(config.seed)
        self._streams: dict[str, _InFlight] = {}
        self._stats = EngineStats(kv_blocks_total=limits.num_blocks)
        self._reports: list[asyncio.Future[EngineStats]] = []
        self._death: str | None = None
        # Writing pixels to shared memory is a copy of megabytes: not on the event loop. One thread, so that a
        # release always comes after the write it undoes.
        self._store_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="trifocal-media-store")

    @classmethod
    async def start(cls, config: EngineConfig) -> AsyncEngine:
        """Start the engine process; returns when it is ready. Raises `ConfigError` or `EngineDeadError`."""
        supervisor = Supervisor(config)
        tokenizer = asyncio.create_task(
            asyncio.to_thread(Tokenizer.from_folder, config.tokenizer, trust_remote_code=config.trust_remote_code)
        )
        try:
            ready = await supervisor.start()
            engine = cls(config, supervisor, ready.limits, await tokenizer)
        except BaseException:
            await supervisor.stop()
            await asyncio.gather(tokenizer, return_exceptions=True)  # or asyncio prints what nobody asked it
            raise
        supervisor.watch(engine._receive, engine._die, lambda: bool(engine._streams))
        return engine

    async def shutdown(self) -> None:
        """End the engine process; open streams raise `EngineDeadError`. Safe to call twice."""
        self._die("the server is shutting down")
        await self._supervisor.stop()
        self._store_thread.shutdown(wait=True)

    # ------------------------------------------------------------------------------------------ requests

    async def submit(self, request_id: str, prompt: Prompt, params: SamplingParams) -> RequestStream:
        """Send a request to the engine. Raises `RequestError` if it can never run, `EngineDeadError` if none can."""
        await self.check_health()
        check(prompt, params, self._limits)
        requests = expand(
            request_id,
            prompt,
            params,
            eos_ids=self.config.spec.eos_token_ids,
            max_model_len=self.max_model_len,
            rng=self._rng,
        )
        choices = {request.request_id: Choice(i, request, self._tokenizer) for i, request in enumerate(requests)}
        if any(child_id in self._streams for child_id in choices):
            raise RequestError(f"request id {request_id!r} is in use", param="request_id")
        stream = RequestStream(self, choices)
        in_flight = {child_id: _InFlight(choice, stream, bool(prompt.media)) for child_id, choice in choices.items()}
        self._streams.update(in_flight)
        try:
            for request in requests:
                await self._send(request)
        except BaseException:
            await stream.aclose()
            raise
        return stream

    async def _send(self, request: Request) -> None:
        share, loop = self._supervisor.media_store.share, asyncio.get_running_loop()
        prompt = request.prompt
        if prompt.media:
            prompt = await loop.run_in_executor(self._store_thread, share, request.request_id, prompt)
        if request.request_id in self._streams:  # not closed meanwhile
            self._supervisor.send(messages.AddRequest.pack(replace(request, prompt=prompt)))

    def end(self, request_ids: Iterable[str]) -> None:
        """Forget requests; those still running are aborted in the engine."""
        running = [request_id for request_id in request_ids if self._forget(request_id)]
        if running and self._death is None:
            self._supervisor.send(messages.AbortRequests(running))

    def _forget(self, request_id: str) -> bool:
        entry = self._streams.pop(request_id, None)
        if entry is None:
            return False
        if entry.has_media:
            self._store_thread.submit(self._supervisor.media_store.release, request_id)
        return True

    # ------------------------------------------------------------------------------------------ what the engine says

    def _receive(self, message: messages.FromEngine) -> None:
        if isinstance(message, messages.Report):
            self._stats = message.stats
            if self._reports and not (report := self._reports.pop(0)).done():
                report.set_result(message.stats)
        elif isinstance(message, messages.Outputs):
            self._stats = message.stats
            for output in message.outputs:
                self._deliver(output)

    def _deliver(self, output: TokenOutput) -> None:
        entry = self._streams.get(output.request_id)
        if entry is None:  # closed by its reader
            return
        choice, stream = entry.choice, entry.stream
        if output.finish_reason == "error":
            self._forget(output.request_id)
            stream.put(RequestError(str(output.stop_reason), status=500, code="engine_fault"))
            return
        delta = choice.feed(output)
        if delta is None:
            return
        if delta.finish_reason is not None:
            if output.finish_reason is None:  # a stop string: the engine does not know yet
                self.end([output.request_id])
            else:
                self._forget(output.request_id)
        stream.put(delta)

    def _die(self, reason: str) -> None:
        if self._death is not None:
            return
        self._death = reason
        self.died.set()
        for stream in {entry.stream for entry in self._streams.values()}:
            stream.put(EngineDeadError(reason))
        for request_id in list(self._streams):
            self._forget(request_id)
        for report in self._reports:
            if not report.done():
                report.set_exception(EngineDeadError(reason))

    # ------------------------------------------------------------------------------------------ state

    async def check_health(self) -> None:
        """Raises `EngineDeadError` if nothing can be generated any more."""
        if self._death is not None:
            raise EngineDeadError(self._death)

    @property
    def engine_pid(self) -> int:
        """Process id of the engine."""
        return self._supervisor.engine_pid

    @property
    def folder(self) -> Path:
        """The private folder that the two processes share."""
        return self._supervisor.folder

    @property
    def last_stats(self) -> EngineStats:
        """State after the last step, without asking the engine."""
        return self._stats

    async def stats(self) -> EngineStats:
        """Ask the engine; it answers between two steps."""
        await self.check_health()
        report: asyncio.Future[EngineStats] = asyncio.get_running_loop().create_future()
        self._reports.append(report)
        self._supervisor.send(messages.QueryStats())
        return await report

    async def integrity(self) -> Integrity:
        """What requests hold now, in both processes."""
        store = self._supervisor.media_store
        shared = await asyncio.get_running_loop().run_in_executor(self._store_thread, lambda: store.num_bytes)
        stats = await self.stats()
        return Integrity(len(self._streams), stats.kv_blocks_used, stats.encoder_bytes_pinned, shared)
