"""The supervisor: owns the engine process, its socket and its shared memory, from the server's event loop."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from time import monotonic

import zmq
import zmq.asyncio

from trifocal import envs
from trifocal.config import EngineConfig
from trifocal.engine import messages
from trifocal.engine.media_store import MediaStore, private_folder, remove_folder
from trifocal.engine.process import SOCKET_NAME
from trifocal.log import get_logger
from trifocal.types import ConfigError, EngineDeadError

logger = get_logger(__name__)
_STOP_GRACE_S = 5.0


class Supervisor:
    """Starts the engine process, passes messages, notices its death. One lifetime: `start`, `watch` .. `stop`."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self.folder = private_folder()
        self.media_store = MediaStore(self.folder)
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._process: asyncio.subprocess.Process | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._heard = monotonic()
        self._is_stopping = False
        self._on_death: Callable[[str], None] = lambda reason: None

    async def start(self) -> messages.Ready:
        """Start the engine and wait until it is ready. Raises `ConfigError` or `EngineDeadError`."""
        try:
            self._socket.bind(f"ipc://{self.folder / SOCKET_NAME}")
            (self.folder / SOCKET_NAME).chmod(0o600)
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "trifocal.engine.process", str(self.folder)
            )
            await self._socket.send(messages.encode(self._config))
            ready = await self._first_message(self._process)
        except BaseException:
            await self.stop()
            raise
        return ready

    async def _first_message(self, process: asyncio.subprocess.Process) -> messages.Ready:
        received = asyncio.ensure_future(self._socket.recv())
        ended = asyncio.ensure_future(process.wait())
        done, _ = await asyncio.wait({received, ended}, return_when=asyncio.FIRST_COMPLETED)
        if received not in done:  # what it sent before it ended may still arrive
            await asyncio.wait({received}, timeout=0.5)
        ended.cancel()
        if not received.done():
            received.cancel()
            raise EngineDeadError(f"the engine process ended with status {process.returncode} while starting")
        message = messages.decode_from_engine(received.result())
        if isinstance(message, messages.Failed):
            raise ConfigError(message.message) if message.is_config else EngineDeadError(message.message)
        if not isinstance(message, messages.Ready):
            raise EngineDeadError(f"the engine began with {type(message).__name__}, expected Ready")
        return message

    def watch(
        self,
        on_message: Callable[[messages.FromEngine], None],
        on_death: Callable[[str], None],
        is_busy: Callable[[], bool],
    ) -> None:
        """Pass on every message from now on; `on_death` is called once, with the reason, if the engine ends uninvited.

        `is_busy` tells whether steps are expected of it.
        """
        self._on_death = on_death
        runs = (self._receive(on_message), self._wait(), self._watch_progress(is_busy))
        self._tasks = [asyncio.create_task(run) for run in runs]

    @property
    def engine_pid(self) -> int:
        """Process id of the engine. It must have been started."""
        assert self._process is not None
        return self._process.pid

    def send(self, message: messages.ToEngine) -> None:
        """Queue a message; the socket has no limit, so this never waits."""
        self._socket.send(messages.encode(message), flags=zmq.NOBLOCK)

    # ------------------------------------------------------------------------------------------ watching

    async def _receive(self, on_message: Callable[[messages.FromEngine], None]) -> None:
        while True:
            message = messages.decode_from_engine(await self._socket.recv())
            self._heard = monotonic()
            if isinstance(message, messages.Failed):
                self._died(message.message)
                return
            on_message(message)

    async def _wait(self) -> None:
        assert self._process is not None
        status = await self._process.wait()
        await asyncio.sleep(0.1)  # a last message may say more than the exit status
        self._died(f"the engine process ended with status {status}")

    async def _watch_progress(self, is_busy: Callable[[], bool]) -> None:
        """An engine that has work but makes no step for too long counts as dead."""
        limit = envs.ENGINE_ITERATION_TIMEOUT_S.get()
        while True:
            await asyncio.sleep(min(1.0, limit / 4))
            if not is_busy():
                self._heard = monotonic()
            elif monotonic() - self._heard > limit:
                self._died(f"the engine made no step for {limit:g} s (VLLM_ENGINE_ITERATION_TIMEOUT_S)")
                return

    def _died(self, reason: str) -> None:
        if not self._is_stopping:
            self._is_stopping = True
            logger.error("engine: %s", reason)
            self._on_death(reason)

    async def stop(self) -> None:
        """End the engine process and give everything back; safe to call twice."""
        self._is_stopping = True
        is_connected = bool(self._tasks)  # before `watch` it may not have got as far as its socket
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        if self._process is not None and self._process.returncode is None:
            if is_connected:
                self.send(messages.Stop())
            await self._end_process(self._process, grace=_STOP_GRACE_S if is_connected else 0.0)
        self._socket.close()
        self._context.term()
        remove_folder(self.folder)

    @staticmethod
    async def _end_process(process: asyncio.subprocess.Process, grace: float) -> None:
        try:
            await asyncio.wait_for(process.wait(), grace)
        except TimeoutError:
            process.kill()
            await process.wait()
