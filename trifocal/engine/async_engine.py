"""`AsyncEngine`: what the server sees of the engine. Prompts go in, deltas come out; the engine is another process."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, replace
from itertools import count

from trifocal.config.engine import EngineConfig
from trifocal.engine import messages
from trifocal.engine.admission import Limits, check, check_max_tokens
from trifocal.engine.child import Death
from trifocal.engine.media_store import MediaStore
from trifocal.engine.output import Choice, expand
from trifocal.engine.replay import Flights, InFlight
from trifocal.engine.stream import RequestStream
from trifocal.engine.supervisor import State, Supervisor
from trifocal.errors import EngineDeadError, RequestError
from trifocal.log import get_logger
from trifocal.sampling_params import SamplingParams
from trifocal.tokenizer import Tokenizer
from trifocal.types import EngineStats, Prompt, TokenOutput

__all__ = ["AsyncEngine", "Integrity", "RequestStream"]

logger = get_logger(__name__)


@dataclass(frozen=True)
class Integrity:
    """What requests hold at this moment; all zero soon after the last of them has ended.

    `worker_sequences` are states in a worker, `stray_embeds` media whose embeddings it holds and the scheduler does not
    know of, `mapped_media` pixels that the engine process has mapped.
    """

    num_requests: int
    kv_blocks: int
    encoder_bytes: int
    shared_bytes: int
    worker_sequences: int
    stray_embeds: int
    mapped_media: int

    @property
    def is_clean(self) -> bool:
        """Whether nothing is held."""
        return not any(astuple(self))


class AsyncEngine:
    """The engine process behind an asyncio interface. One lifetime: `start` .. `shutdown`.

    An engine process that dies or hangs is replaced, and the streams go on where they were. `died` is set when that
    is not possible any more; every stream then raises `EngineDeadError`.
    """

    def __init__(self, config: EngineConfig, supervisor: Supervisor, limits: Limits, tokenizer: Tokenizer) -> None:
        self.config = config
        self.max_model_len = limits.max_model_len
        self.died = asyncio.Event()
        self._supervisor = supervisor
        self._limits = limits
        self._tokenizer = tokenizer
        self._rng = random.Random(config.seed)
        self._flights: Flights[RequestStream] = Flights()
        self._idle_stats = self._stats = EngineStats(kv_blocks_total=limits.num_blocks)
        self._reports: list[asyncio.Future[None]] = []
        self._death: str | None = None
        self._media_store = MediaStore()
        self._media_users = count()
        # Writing pixels to shared memory is a copy of megabytes: not on the event loop. One thread, so that a
        # release always comes after the write it undoes.
        self._store_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="trifocal-media-store")

    @classmethod
    async def start(cls, config: EngineConfig, read_tokenizer: Callable[[], Tokenizer]) -> AsyncEngine:
        """Start the engine process; returns when it is ready. Raises `ConfigError` or `EngineDeadError`.

        `read_tokenizer` is called in a thread, while the process starts.
        """
        supervisor = Supervisor()
        try:
            await supervisor.spawn()
            tokenizer = await asyncio.to_thread(read_tokenizer)
            config = replace(config, num_vocab=tokenizer.vocab_size)
            ready = await supervisor.start(config)
            engine = cls(config, supervisor, ready.limits, tokenizer)
        except BaseException:
            await supervisor.stop()
            raise
        supervisor.watch(engine)
        return engine

    async def shutdown(self) -> None:
        """End the engine process; open streams raise `EngineDeadError`. Safe to call twice."""
        self.engine_lost("the server is shutting down")
        await self._supervisor.stop()
        self._store_thread.shutdown(wait=True)
        self._media_store.close()

    # ------------------------------------------------------------------------------------------ requests

    def check_max_tokens(self, params: SamplingParams) -> None:
        """Raise `RequestError` for `max_tokens` that no prompt leaves; `submit` does, but a prompt may be costly."""
        check_max_tokens(params, self._limits.context_len)

    async def submit(self, request_id: str, prompt: Prompt, params: SamplingParams) -> RequestStream:
        """Send a request to the engine, or keep it for the next one if there is none at the moment.

        Raises `RequestError` if it can never run or its id is in use, `EngineDeadError` if nothing can run any more.
        """
        await self.check_health()
        check(prompt, params, self._limits)
        users = [str(next(self._media_users)) for _ in range(params.n)]
        prompt = await self._share(users, prompt)
        try:
            return self._accept(request_id, prompt, params, users)
        except BaseException:
            self._release(users)
            raise

    def _accept(self, request_id: str, prompt: Prompt, params: SamplingParams, users: list[str]) -> RequestStream:
        if self._death is not None:  # meanwhile
            raise EngineDeadError(self._death)
        requests = expand(
            request_id,
            prompt,
            params,
            eos_ids=self.config.spec.eos_token_ids,
            max_model_len=self.max_model_len,
            rng=self._rng,
            tokenizer=self._tokenizer,
        )
        if any(request.request_id in self._flights for request in requests):
            raise RequestError(f"request id {request_id!r} is in use", param="request_id")
        choices = [Choice(index, request, self._tokenizer) for index, request in enumerate(requests)]
        stream = RequestStream([request.request_id for request in requests], self.end)
        for request, choice, user in zip(requests, choices, users, strict=True):
            self._flights.add(InFlight(request, choice, stream, user))
        self._tell_engine()
        return stream

    async def _share(self, users: list[str], prompt: Prompt) -> Prompt:
        if not prompt.media:
            return prompt
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._store_thread, self._media_store.share, users, prompt)
        except OSError as error:
            self._release(users)
            raise RequestError(f"no room for media: {error.strerror}", status=503, code="overloaded") from None
        except BaseException:  # cancelled; the write may still be going on
            self._release(users)
            raise

    def _release(self, users: Sequence[str]) -> None:
        if self._death is None:  # `shutdown` gives back what is left
            self._store_thread.submit(self._media_store.release, users)

    def end(self, request_ids: Sequence[str]) -> None:
        """Forget requests; those still running are aborted in the engine.

        It is told before their pixels are given back: a request that it has not looked at yet would find the pixels of
        somebody else in their place, and is dropped with the word that comes right behind it.
        """
        ended = [self._flights.remove(request_id) for request_id in request_ids]
        self._tell_engine()
        users = [flight.media_user for flight in ended if flight is not None and flight.request.prompt.media]
        if users:
            self._release(users)

    def _tell_engine(self) -> None:
        """Send what there is to send; what cannot be sent now is sent when an engine is ready."""
        if self._supervisor.state is not State.RUNNING:
            return
        requests, to_abort = self._flights.take_due()
        if to_abort:
            self._supervisor.send(messages.AbortRequests(to_abort))
        for request in requests:
            self._supervisor.send(messages.AddRequest.pack(request))

    # ------------------------------------------------------------------------------------------ what the engine says

    def receive(self, message: messages.FromEngine) -> None:
        """See `supervisor.Client`."""
        if isinstance(message, messages.Report):
            self._stats = message.stats
            if self._reports and not (report := self._reports.pop(0)).done():
                report.set_result(None)
        elif isinstance(message, messages.Outputs):
            self._stats = message.stats
            for output in message.outputs:
                self._deliver(output)
            self._tell_engine()

    def _deliver(self, output: TokenOutput) -> None:
        flight = self._flights.receive(output)
        if flight is None:  # closed by its reader
            return
        if output.finish_reason == "error":
            self._fail(flight, str(output.stop_reason))
            return
        num_cached, scheduled_at = flight.num_cached_tokens or 0, flight.scheduled_at
        try:
            delta = flight.choice.feed(replace(output, num_cached_tokens=num_cached, scheduled_at=scheduled_at))
        except Exception:
            logger.exception("tokens of one request could not be turned into text")
            self._fail(flight, "internal error; the server's log says more")
            return
        if delta is not None:
            if delta.finish_reason is not None:  # by the engine, or by a stop string, of which it does not know
                self.end([flight.request.request_id])
            flight.stream.put(delta)

    def _fail(self, flight: InFlight[RequestStream], reason: str) -> None:
        self.end([flight.request.request_id])
        flight.stream.put(RequestError(reason, status=500, code="engine_fault"))

    def is_busy(self) -> bool:
        """See `supervisor.Client`."""
        return self._flights.num_sent > 0

    def engine_died(self, death: Death) -> None:
        """See `supervisor.Client`."""
        self._stats = self._idle_stats
        self._answer_reports()
        for flight in self._flights.lose_engine(death):
            logger.error("request %s crashed the engine twice; it is given up", flight.request.request_id)
            self._fail(flight, "the engine crashed twice while it worked on this request")

    def engine_started(self) -> None:
        """See `supervisor.Client`."""
        if len(self._flights):
            logger.warning("%d requests go on in the new engine", len(self._flights))
        self._tell_engine()

    def engine_lost(self, reason: str) -> None:
        """See `supervisor.Client`."""
        if self._death is not None:
            return
        self._death = reason
        self.died.set()
        flights = self._flights.all()
        for stream in {flight.stream for flight in flights}:
            stream.put(EngineDeadError(reason))
        self.end([flight.request.request_id for flight in flights])
        self._answer_reports()

    def _answer_reports(self) -> None:
        for report in self._reports:
            if not report.done():
                report.set_result(None)
        self._reports.clear()

    # ------------------------------------------------------------------------------------------ state

    async def check_health(self) -> None:
        """Raises `EngineDeadError` if nothing can be generated any more."""
        if self._death is not None:
            raise EngineDeadError(self._death)

    @property
    def is_ready(self) -> bool:
        """Whether an engine is running at this moment; if not, requests wait for the next one."""
        return self._supervisor.state is State.RUNNING

    @property
    def engine_pid(self) -> int | None:
        """Process id of the engine that runs or is starting; None between two."""
        return self._supervisor.engine_pid

    @property
    def last_stats(self) -> EngineStats:
        """State after the last step, without asking the engine."""
        return replace(
            self._stats,
            num_waiting=self._stats.num_waiting + len(self._flights) - self._flights.num_sent,
            num_restarts=self._supervisor.num_restarts,
            num_replays=self._flights.num_replays,
        )

    async def stats(self) -> EngineStats:
        """Ask the engine; it answers between two steps. Without an engine: `last_stats`."""
        await self.check_health()
        if self.is_ready:
            report: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._reports.append(report)
            self._supervisor.send(messages.QueryStats())
            await report
        return self.last_stats

    async def integrity(self) -> Integrity:
        """What requests hold now, in both processes and in the workers."""
        store = self._media_store
        shared = await asyncio.get_running_loop().run_in_executor(self._store_thread, lambda: store.num_bytes)
        stats = await self.stats()
        return Integrity(
            num_requests=len(self._flights),
            kv_blocks=stats.kv_blocks_used,
            encoder_bytes=stats.encoder_bytes_pinned,
            shared_bytes=shared,
            worker_sequences=stats.worker_sequences,
            stray_embeds=stats.worker_embeds - stats.encoder_items,
            mapped_media=stats.mapped_media,
        )
