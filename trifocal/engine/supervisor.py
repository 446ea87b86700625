"""The supervisor: sees to it that there is an engine. When one dies it starts another, within bounds.

    STARTING ──ready──► RUNNING ──death──► STARTING (again, after a pause) ── ... ──► LOST
        └─────────── cannot start, or too many deaths in a row ───────────────────────►┘

What becomes of the requests is not decided here but by its listener (`Replica`), which is told of each change.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from enum import Enum, auto
from time import monotonic
from typing import Protocol

from trifocal.config.engine import EngineConfig
from trifocal.config.supervision import SupervisionConfig
from trifocal.engine import messages
from trifocal.engine.child import Death, EngineChild, VanishedError
from trifocal.errors import EngineDeadError, TrifocalError
from trifocal.log import get_logger

logger = get_logger(__name__)
_MAX_BACKOFF_S = 30.0
_QUIET_S = 60.0  # an idle engine that lived this long did not die of its start


class State(Enum):
    """Where the supervisor is; the picture above shows how it gets there."""

    STARTING = auto()
    RUNNING = auto()
    LOST = auto()  # for good
    STOPPED = auto()  # by `stop`, from any state


class Listener(Protocol):
    """Gets the news about the engine. Every method returns at once."""

    def is_busy(self) -> bool:
        """Whether the engine has work, so that steps are expected of it."""

    def receive(self, message: messages.FromEngine) -> None:
        """The running engine says something."""

    def engine_died(self, death: Death) -> None:
        """The engine is gone; everything it said before has been received. A new one is on its way."""

    def engine_started(self) -> None:
        """A new engine is ready; it knows of no request."""

    def engine_lost(self, reason: str) -> None:
        """There will be no engine any more."""


class Supervisor:
    """Engine processes, one at a time. One lifetime: `start`, `watch` .. `stop`."""

    def __init__(self, bounds: SupervisionConfig) -> None:
        self._bounds = bounds
        self._config: EngineConfig | None = None
        self._state = State.STARTING
        self._child: EngineChild | None = None
        self._watching: asyncio.Task[None] | None = None
        self._num_failures = 0  # deaths and failed starts in a row, without a token in between
        self.num_restarts = 0  # processes started in the place of a dead one

    @property
    def state(self) -> State:
        return self._state

    @property
    def engine_pid(self) -> int | None:
        """Process id of the engine that runs or is starting."""
        return None if self._child is None else self._child.pid

    async def spawn(self) -> None:
        """Start the first process, which takes its time to import what it needs before `start` configures it."""
        self._child = await EngineChild.spawn(self._bounds)

    async def start(self, config: EngineConfig) -> messages.Ready:
        """Configure the engine and wait until it is ready. One that says why it cannot start is not tried again.

        Raises `ConfigError` or `EngineDeadError`.
        """
        self._config = config
        try:
            ready = await self._start_until_ready(retries=(VanishedError,))
        except BaseException:
            await self.stop()
            raise
        # A new engine must have room for whatever this one accepted, so it does not measure anew.
        self._config = replace(config, cache=replace(config.cache, num_blocks_before=ready.limits.num_blocks))
        return ready

    def watch(self, listener: Listener) -> None:
        """Keep the engine running from now on."""
        self._watching = asyncio.create_task(self._watch(listener))

    def send(self, message: messages.ToEngine) -> None:
        """Send to the engine; it must be RUNNING. What it does not live to read is lost."""
        assert self._child is not None and self._state is State.RUNNING
        self._child.send(message)

    async def _watch(self, listener: Listener) -> None:
        try:
            await self._keep_running(listener)
        except Exception as error:
            if not isinstance(error, TrifocalError):
                logger.exception("the supervisor failed")
            self._state = State.LOST
            listener.engine_lost(str(error))

    async def _keep_running(self, listener: Listener) -> None:
        """Replace one engine after the other. Raises `ConfigError` or `EngineDeadError` when that cannot go on."""

        def receive(message: messages.FromEngine) -> None:
            if isinstance(message, messages.Outputs) and any(
                output.finish_reason != "error" for output in message.outputs
            ):
                self._num_failures = 0
            listener.receive(message)

        while True:
            assert self._child is not None
            started = monotonic()
            death = await self._child.run(receive, listener.is_busy)
            self._state = State.STARTING
            logger.error("the engine died: %s", death.reason)
            if not listener.is_busy() and monotonic() - started > _QUIET_S:
                self._num_failures = 0  # it had nothing to produce
            await self._remove_child()
            listener.engine_died(death)
            self._count_failure(death.reason)
            await self._start_until_ready(retries=(EngineDeadError,))
            logger.warning("a new engine is ready")
            listener.engine_started()

    async def _start_until_ready(self, retries: tuple[type[EngineDeadError], ...]) -> messages.Ready:
        """Start engines until one is ready, pausing longer each time."""
        assert self._config is not None
        while True:
            await asyncio.sleep(self._backoff_s())
            try:
                if self._child is None:
                    self._child = await EngineChild.spawn(self._bounds)
                    self.num_restarts += 1
                ready = await self._child.ready(self._config)
            except TrifocalError as error:
                await self._remove_child()
                if not isinstance(error, retries):
                    raise
                logger.error("the engine did not start: %s", error)
                self._count_failure(str(error))
            else:
                self._state = State.RUNNING
                return ready

    def _count_failure(self, reason: str) -> None:
        """Raises `EngineDeadError` if this was one too many."""
        self._num_failures += 1
        if self._num_failures > self._bounds.max_restarts:
            num_restarts = self._num_failures - 1
            raise EngineDeadError(f"{reason}; {num_restarts} restarts brought no token (TRIFOCAL_ENGINE_MAX_RESTARTS)")

    def _backoff_s(self) -> float:
        """The first to replace an engine that worked comes at once."""
        if self._num_failures <= 1:
            return 0.0
        return min(self._bounds.restart_backoff_s * 2.0 ** (self._num_failures - 2), _MAX_BACKOFF_S)

    async def _remove_child(self) -> None:
        if self._child is not None:
            child, self._child = self._child, None
            await child.stop(is_polite=False)

    async def stop(self) -> None:
        """End the engine process; safe to call at any time and twice."""
        is_polite = self._state is State.RUNNING
        self._state = State.STOPPED
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait({self._watching})
        if self._child is not None:
            child, self._child = self._child, None
            await child.stop(is_polite=is_polite)
