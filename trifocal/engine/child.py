"""One engine process as the server sees it, from its start to its death."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from asyncio.subprocess import Process
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from trifocal.config.engine import EngineConfig
from trifocal.config.supervision import SupervisionConfig
from trifocal.engine import messages
from trifocal.engine.channel import LENGTH_BYTES, frame
from trifocal.engine.crash_trace import CrashTrace, way
from trifocal.engine.step_note import StepNote
from trifocal.errors import ConfigError, EngineDeadError
from trifocal.log import get_logger
from trifocal.subprocesses import python_module, python_path

logger = get_logger(__name__)
_END_GRACE_S = 1.0  # between saying that it failed and being gone
_STOP_GRACE_S = 5.0
_KILL_GRACE_S = 30.0  # a driver may hold a process back that was killed, for ever if the device is ill
_SIGNALS_OF_OTHERS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class VanishedError(EngineDeadError):
    """The engine process was killed, hung or not there before it could say anything: the next one may do better."""


@dataclass(frozen=True)
class Death:
    """How an engine ended. `batch` are the requests whose step was running (None: that cannot be told).

    `is_from_outside`: somebody killed or stopped the process; nothing that it computed is to blame. The kernel's kill
    for want of memory is not of that kind.
    """

    reason: str
    batch: frozenset[str] | None
    is_from_outside: bool = False


class EngineChild:
    """A process, our end of its socket pair, its step note and crash trace. One lifetime: `spawn`, `ready`, `run` or
    `stop`.

    Whatever is left when a method raises, `stop` removes.
    """

    def __init__(
        self,
        bounds: SupervisionConfig,
        process: Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        note: StepNote,
        trace: CrashTrace,
    ) -> None:
        self.pid = process.pid
        self._bounds = bounds
        self._process = process
        self._reader = reader
        self._writer = writer
        self._note = note
        self._trace = trace
        self._num_oom_kills = _num_oom_kills()
        self._heard = monotonic()
        self._num_steps = 0
        self._last_words: str | None = None
        self._is_stopped_by_others = False

    @classmethod
    async def spawn(cls, bounds: SupervisionConfig) -> EngineChild:
        """Start the process; it waits for its configuration. Raises `VanishedError` where the system has no room."""
        try:
            return await cls._spawn(bounds)
        except OSError as error:
            raise VanishedError(f"no engine process can be started: {error.strerror}") from None

    @classmethod
    async def _spawn(cls, bounds: SupervisionConfig) -> EngineChild:
        ours, theirs = socket.socketpair()
        note, trace = StepNote.create(), CrashTrace.create()
        process = None
        try:
            with theirs:
                inherited = (theirs.fileno(), note.fileno, trace.fileno)
                process = await asyncio.create_subprocess_exec(
                    *python_module("trifocal.engine.process", *map(str, inherited)),
                    pass_fds=inherited,
                    env={**os.environ, **python_path()},
                )
            reader, writer = await asyncio.open_unix_connection(sock=ours)
        except BaseException:
            ours.close()
            note.close()
            trace.close()
            if process is not None:
                process.kill()
                await process.wait()
            raise
        return cls(bounds, process, reader, writer, note, trace)

    async def ready(self, config: EngineConfig) -> messages.Ready:
        """Configure it and wait until it is ready.

        Raises `ConfigError` or `EngineDeadError` as it says, `VanishedError` if it is killed, stopped or too slow.
        """
        limit = self._bounds.ready_timeout_s
        self._write(messages.encode(config))
        try:
            async with asyncio.timeout(limit):
                message = await self._unless_stopped(self._receive())
        except TimeoutError:
            raise VanishedError(f"the engine was not ready in {limit:g} s (TRIFOCAL_ENGINE_READY_TIMEOUT_S)") from None
        except EOFError:
            status = await self._gone()
            kind = VanishedError if status < 0 else EngineDeadError
            raise kind(f"the engine process {_ended(status)} while starting") from None
        if isinstance(message, messages.Failed):
            raise ConfigError(message.message) if message.is_config else EngineDeadError(message.message)
        assert isinstance(message, messages.Ready)
        return message

    async def _unless_stopped(self, receiving: Coroutine[Any, Any, messages.FromEngine]) -> messages.FromEngine:
        """What is received while the process starts. Raises `VanishedError` if a signal holds it for too long.

        Its silence tells nothing: a large checkpoint may take minutes to load, on a slow disk without computing.
        """
        limit, task = self._bounds.iteration_timeout_s, asyncio.create_task(receiving)
        last_free = monotonic()
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=min(1.0, limit / 4))
                if not _is_stopped(self.pid):
                    last_free = monotonic()
                elif monotonic() - last_free > limit:
                    raise VanishedError(
                        f"a signal stopped the engine for {limit:g} s while starting (VLLM_ENGINE_ITERATION_TIMEOUT_S)"
                    )
            return task.result()
        finally:
            task.cancel()

    def send(self, message: messages.ToEngine) -> None:
        """Queue a message; there is no limit, so this never waits."""
        self._write(messages.encode(message))

    def _write(self, data: bytes) -> None:
        if not self._writer.is_closing():
            self._writer.write(frame(data))

    async def _receive(self) -> messages.FromEngine:
        try:
            length = int.from_bytes(await self._reader.readexactly(LENGTH_BYTES), "little")
            return messages.decode_from_engine(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            raise EOFError from None

    # ------------------------------------------------------------------------------------------ running

    async def run(self, on_message: Callable[[messages.FromEngine], None], is_busy: Callable[[], bool]) -> Death:
        """Pass on every message until the process ends, is killed or makes no step while `is_busy`.

        All that it managed to send is passed on first; when this returns, the process is gone. Raises `EngineDeadError`
        if it cannot be removed.
        """
        ended = asyncio.create_task(self._process.wait())
        reading = asyncio.create_task(self._pass_on(on_message))
        watching = asyncio.create_task(self._watch_progress(is_busy))
        try:
            await asyncio.wait({ended, reading}, return_when=asyncio.FIRST_COMPLETED)
            status = await self._gone()
            await asyncio.wait({reading}, timeout=_END_GRACE_S)  # longer if somebody else holds its socket
            if reading.done():
                reading.result()  # raises what the receiver of messages raised
            return self._death(status)
        finally:
            for task in (ended, reading, watching):
                task.cancel()
            await asyncio.gather(ended, reading, watching, return_exceptions=True)

    async def _pass_on(self, on_message: Callable[[messages.FromEngine], None]) -> None:
        with suppress(EOFError):
            while True:
                message = await self._receive()
                if isinstance(message, messages.Failed):
                    self._last_words = message.message
                    return
                if isinstance(message, messages.Outputs) and message.stats.num_steps != self._num_steps:
                    self._num_steps = message.stats.num_steps
                    self._heard = monotonic()
                on_message(message)

    async def _watch_progress(self, is_busy: Callable[[], bool]) -> None:
        limit = self._bounds.iteration_timeout_s
        self._heard = monotonic()
        while True:
            await asyncio.sleep(min(1.0, limit / 4))
            if not is_busy():
                self._heard = monotonic()
            elif monotonic() - self._heard > limit:
                self._is_stopped_by_others = _is_stopped(self.pid)
                self._last_words = f"no step for {limit:g} s (VLLM_ENGINE_ITERATION_TIMEOUT_S)"
                self._kill()
                return

    def _death(self, status: int) -> Death:
        if self._last_words is not None:
            is_from_outside = self._is_stopped_by_others
        else:
            is_oom = _num_oom_kills() != self._num_oom_kills
            is_from_outside = -status in _SIGNALS_OF_OTHERS and not is_oom
        return Death(self._last_words or self._crash(status), self._note.read(), is_from_outside)

    def _crash(self, status: int) -> str:
        trace = self._trace.read()
        if trace:
            logger.debug("%s", trace)
        return f"the process {_ended(status)}" + (f" in {where}" if (where := way(trace)) else "")

    # ------------------------------------------------------------------------------------------ ending

    async def stop(self, *, is_polite: bool) -> None:
        """End the process, by asking first if `is_polite`, and close everything. Safe to call after its death."""
        if is_polite and self._process.returncode is None:
            self.send(messages.Stop())
            with suppress(TimeoutError):
                async with asyncio.timeout(_STOP_GRACE_S):
                    await self._process.wait()
        self._kill()
        self._writer.close()
        self._note.close()
        self._trace.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(_KILL_GRACE_S):
                await self._process.wait()
        with suppress(ConnectionError):
            await self._writer.wait_closed()

    async def _gone(self) -> int:
        """The exit status of a process that is about to end; made to, if it takes long. Raises `EngineDeadError`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_END_GRACE_S):
                await self._process.wait()
        self._kill()
        try:
            async with asyncio.timeout(_KILL_GRACE_S):
                return await self._process.wait()
        except TimeoutError:
            raise EngineDeadError("the engine process cannot be killed") from None

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            self._process.kill()


def _ended(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"


def _is_stopped(pid: int) -> bool:
    """Whether the process is held by a signal (SIGSTOP) or a debugger; only Linux tells."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in ("T", "t")
    except OSError:
        return False


def _num_oom_kills() -> str | None:
    """How often the kernel has killed a process for want of memory; only Linux tells."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return None
    return next((line for line in lines if line.startswith("oom_kill ")), None)
