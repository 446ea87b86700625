"""`AsyncEngine`: what the server sees of the engine. Prompts go in, deltas come out; each engine is a process."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, replace
from itertools import count

from trifocal.config.engine import EngineConfig
from trifocal.engine.flights import InFlight
from trifocal.engine.limits import check, check_max_tokens
from trifocal.engine.media_store import MediaStore
from trifocal.engine.output import Choice, expand
from trifocal.engine.replica import Flight, Replica
from trifocal.engine.router import Router, first_ready
from trifocal.engine.stream import RequestStream
from trifocal.engine.supervisor import Supervisor
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
    """Engine processes behind an asyncio interface. One lifetime: `start` .. `shutdown`.

    Requests and their pixels are held here, so they outlive engines. An engine process that dies or hangs is replaced,
    and the streams go on where they were. A replica that is given up leaves its requests to the others; `died` is set
    when none is left, and every stream then raises `EngineDeadError`. All calls are made on the event loop.
    """

    def __init__(
        self, config: EngineConfig, replicas: Sequence[Replica], tokenizer: Tokenizer, router: Router = first_ready
    ) -> None:
        self.config = config
        self.replicas = tuple(replicas)
        self.died = asyncio.Event()
        self._router = router
        self._limits = min((replica.limits for replica in replicas), key=lambda limits: limits.context_len)
        self.max_model_len = self._limits.max_model_len
        self._tokenizer = tokenizer
        self._rng = random.Random(config.model.seed)
        self._death: str | None = None
        self._media_store = MediaStore()
        self._media_users = count()
        # Writing pixels to shared memory is a copy of megabytes: not on the event loop. One thread, so that a
        # release always comes after the write it undoes.
        self._store_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="trifocal-media-store")
        for replica in replicas:
            replica.watch(self)

    @classmethod
    async def start(cls, config: EngineConfig, read_tokenizer: Callable[[], Tokenizer]) -> AsyncEngine:
        """Start the engine process; returns when it is ready. Raises `ConfigError` or `EngineDeadError`.

        `read_tokenizer` is called in a thread, while the process starts.
        """
        supervisor = Supervisor(config.supervision)
        try:
            await supervisor.spawn()
            tokenizer = await asyncio.to_thread(read_tokenizer)
            config = replace(config, model=replace(config.model, num_vocab=tokenizer.vocab_size))
            ready = await supervisor.start(config)
            return cls(config, [Replica(supervisor, ready.limits)], tokenizer)
        except BaseException:
            await supervisor.stop()
            raise

    async def shutdown(self) -> None:
        """End the engine processes; open streams raise `EngineDeadError`. Safe to call twice."""
        self._give_up("the server is shutting down")
        await asyncio.gather(*(replica.stop() for replica in self.replicas))
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
        prompt = replace(await self._share(users, prompt), text=None)  # which the engine has no use for
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
            eos_ids=self.config.model.spec.eos_token_ids,
            max_model_len=self.max_model_len,
            rng=self._rng,
            tokenizer=self._tokenizer,
        )
        if any(request.request_id in replica.flights for request in requests for replica in self.replicas):
            raise RequestError(f"request id {request_id!r} is already in use", param="request_id")
        choices = [Choice(index, request, self._tokenizer) for index, request in enumerate(requests)]
        stream = RequestStream([request.request_id for request in requests], self.end)
        self._router(prompt, self._alive()).add(
            InFlight(request, choice, stream, user)
            for request, choice, user in zip(requests, choices, users, strict=True)
        )
        return stream

    def _alive(self) -> list[Replica]:
        return [replica for replica in self.replicas if replica.death is None]

    async def _share(self, users: list[str], prompt: Prompt) -> Prompt:
        if not prompt.media:
            return prompt
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._store_thread, self._media_store.share, users, prompt)
        except OSError as error:
            self._release(users)
            raise RequestError(
                f"the request's media could not be kept in memory: {error.strerror}", status=503, code="overloaded"
            ) from None
        except BaseException:  # cancelled; the write may still be going on
            self._release(users)
            raise

    def _release(self, users: Sequence[str]) -> None:
        if self._death is None:  # `shutdown` gives back what is left
            self._store_thread.submit(self._media_store.release, users)

    def end(self, request_ids: Sequence[str]) -> None:
        """Forget requests; those still running are aborted in the engine.

        They are aborted before their pixels are released: an engine that has not mapped these yet may find those of
        another request under the same descriptor.
        """
        ended = [flight for replica in self.replicas for flight in replica.remove(request_ids)]
        users = [flight.media_user for flight in ended if flight.request.prompt.media]
        if users:
            self._release(users)

    # ------------------------------------------------------------------------------------------ `replica.Owner`

    def deliver(self, flight: Flight, output: TokenOutput) -> None:
        if output.finish_reason == "error":
            self.fail(flight, str(output.stop_reason))
            return
        num_cached, scheduled_at = flight.num_cached_tokens or 0, flight.scheduled_at
        try:
            delta = flight.choice.feed(replace(output, num_cached_tokens=num_cached, scheduled_at=scheduled_at))
        except Exception:
            logger.exception("the tokens of a request could not be turned into text")
            self.fail(flight, "internal error; the server's log says more")
            return
        if delta is not None:
            if delta.finish_reason is not None:  # by the engine, or by a stop string, of which it does not know
                self.end([flight.request.request_id])
            flight.stream.put(delta)

    def fail(self, flight: Flight, reason: str) -> None:
        self.end([flight.request.request_id])
        flight.stream.put(RequestError(reason, status=500, code="engine_fault"))

    def replica_lost(self, replica: Replica, reason: str) -> None:
        """See `replica.Owner`. What may have killed its engines is not let loose on others."""
        others, flights = self._alive(), replica.flights.all()
        if not others:
            self._give_up(reason)
            return
        for flight in flights:
            if flight.is_suspect:
                self.fail(flight, "the engine died while it worked on this request, and cannot be started again")
        for flight in replica.remove([flight.request.request_id for flight in flights]):
            self._router(flight.request.prompt, others).add([flight])

    def _give_up(self, reason: str) -> None:
        if self._death is not None:
            return
        self._death = reason
        self.died.set()
        flights = [flight for replica in self.replicas for flight in replica.flights.all()]
        for stream in {flight.stream for flight in flights}:
            stream.put(EngineDeadError(reason))
        self.end([flight.request.request_id for flight in flights])

    # ------------------------------------------------------------------------------------------ state

    async def check_health(self) -> None:
        """Raises `EngineDeadError` if nothing can be generated any more."""
        if self._death is not None:
            raise EngineDeadError(self._death)

    @property
    def is_ready(self) -> bool:
        """Whether an engine is running at this moment; if not, requests wait for the next one."""
        return any(replica.is_ready for replica in self.replicas)

    @property
    def last_stats(self) -> list[EngineStats]:
        """State of each replica after its last step, without asking the engines."""
        return [replica.last_stats for replica in self.replicas]

    async def stats(self) -> list[EngineStats]:
        """Ask the engines; each answers between two steps. Of one that does not run: as in `last_stats`."""
        await self.check_health()
        return await asyncio.gather(*(replica.stats() for replica in self.replicas))

    async def integrity(self) -> Integrity:
        """What requests hold now, in all processes and in the workers."""
        store = self._media_store
        shared = await asyncio.get_running_loop().run_in_executor(self._store_thread, lambda: store.num_bytes)
        stats = await self.stats()
        return Integrity(
            num_requests=sum(len(replica.flights) for replica in self.replicas),
            kv_blocks=sum(each.kv_blocks_used for each in stats),
            encoder_bytes=sum(each.encoder_bytes_pinned for each in stats),
            shared_bytes=shared,
            worker_sequences=sum(each.worker_sequences for each in stats),
            stray_embeds=sum(each.worker_embeds - each.encoder_items for each in stats),
            mapped_media=sum(each.mapped_media for each in stats),
        )
