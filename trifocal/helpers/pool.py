"""Helper processes from the outside: started when needed, used again, ended and replaced when they misbehave.

`HelperPool` serves any number of threads. What may take long, or crash, or eat memory because a stranger made it runs
in a helper (`helpers/process.py`), whose time and memory the kernel limits; each kind of work has a pool of its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import subprocess
import threading
import weakref
from collections.abc import Callable
from time import monotonic
from typing import Generic, TypeVar

from trifocal.helpers.process import LENGTH_BYTES, packed
from trifocal.log import get_logger
from trifocal.subprocesses import python_module, python_path

logger = get_logger(__name__)
T = TypeVar("T")
H = TypeVar("H", bound="Helper")
_START_S = 60.0
_PIPE_BYTES = 1 << 20
_F_SETPIPE_SZ = getattr(fcntl, "F_SETPIPE_SZ", None)
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
_OUT_OF_TIME = (signal.SIGXCPU, signal.SIGALRM, signal.SIGPROF)


class HelperDiedError(Exception):
    """The process ended in the middle of a job, or broke the protocol; the message says how."""


class HelperSlowError(Exception):
    """The job took longer than it may."""


class HelperStartError(Exception):
    """No helper can be started, or the pool is closed; the message says why."""


class Helper:
    """One helper process and the pipes to it. Not for several threads at once.

    A job begins with `start_job`; its answer has been read when `end_job` is called. In between the process is of no
    use to others.
    """

    max_message = 64 << 20  # bytes that it may send at once

    def __init__(self, module: str, *words: str) -> None:
        """Run `python -m module words`. Raises `OSError`, and `HelperDiedError` or `HelperSlowError` in bad starts."""
        self._process = subprocess.Popen(
            python_module(module, *words),
            # What Python says of an end that nobody foresaw would have file paths in it.
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0,
            env={**os.environ, **_ENVIRONMENT, **python_path()},
        )  # fmt: skip
        assert self._process.stdin is not None and self._process.stdout is not None
        self._jobs, self._answers = self._process.stdin, self._process.stdout
        for pipe in (self._jobs, self._answers):
            os.set_blocking(pipe.fileno(), False)
            if _F_SETPIPE_SZ is not None:
                with contextlib.suppress(OSError):  # the user's share of pipe memory is used up: slower, that is all
                    fcntl.fcntl(pipe, _F_SETPIPE_SZ, _PIPE_BYTES)
        self._writable, self._readable = select.poll(), select.poll()
        self._writable.register(self._jobs, select.POLLOUT)
        self._readable.register(self._answers, select.POLLIN)
        self.is_free = False
        self.start_job(_START_S)
        try:
            self.receive()
        except BaseException:
            self.kill()
            raise
        self.end_job()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def start_job(self, seconds: float) -> None:
        """From now on a job may take so long by the clock; sending and receiving raise `HelperSlowError` after it."""
        self.is_free = False
        self._deadline = monotonic() + seconds

    def end_job(self, *, is_spent: bool = False) -> None:
        """The answer has been read to its end. `is_spent`: the process should be replaced."""
        self.is_free = not is_spent

    def send(self, message: bytes, data: bytes = b"") -> None:
        """Send a message, and `data` behind it."""
        self._write(packed(message))
        self._write(data)

    def receive(self) -> bytes:
        length = int.from_bytes(self._read(LENGTH_BYTES), "little")
        if length > self.max_message:
            raise HelperDiedError("it sent a message that is too long")
        return bytes(self._read(length))

    def fill(self, view: memoryview) -> None:
        """Fill `view` with bytes that follow a message."""
        while view:
            self._check_time()
            try:
                count = os.readv(self._answers.fileno(), [view])
            except BlockingIOError:
                self._wait(self._readable)
                continue
            if not count:
                raise self._death()
            view = view[count:]

    def kill(self) -> None:
        self.terminate()
        self._jobs.close()
        self._answers.close()

    def terminate(self) -> None:
        """End the process while another thread may be using its pipes: that thread finds them closed at the far end."""
        self._process.kill()
        self._process.wait()

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            self._check_time()
            try:
                view = view[os.write(self._jobs.fileno(), view[:_PIPE_BYTES]) :]
            except BlockingIOError:
                self._wait(self._writable)
            except BrokenPipeError:
                raise self._death() from None

    def _read(self, num_bytes: int) -> bytearray:
        data = bytearray(num_bytes)
        self.fill(memoryview(data))
        return data

    def _wait(self, poll: select.poll) -> None:
        poll.poll(max(self._deadline - monotonic(), 0) * 1000)

    def _check_time(self) -> None:
        if monotonic() > self._deadline:
            raise HelperSlowError

    def _death(self) -> Exception:
        try:
            status = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            return HelperDiedError("it closed its pipes and did not end")
        if -status in _OUT_OF_TIME:
            return HelperSlowError()
        return HelperDiedError(signal.Signals(-status).name if status < 0 else f"exit status {status}")


class HelperPool(Generic[H]):
    """Helpers that `start` starts, at most `size` of them at once, or as many as jobs. For any number of threads.

    Idle ones wait for the next job. All end with the pool, and with the program. `tries`: how often a job is begun if
    its helper dies of it, which may have been somebody else's doing.
    """

    def __init__(self, start: Callable[[], H], *, name: str, size: int | None = None, tries: int = 1) -> None:
        self._start_helper = start
        self._name = name
        self._tries = tries
        self._free = contextlib.nullcontext() if size is None else threading.Semaphore(size)
        self._lock = threading.Lock()
        self._is_closed = False
        self._idle: list[H] = []
        self._all: set[H] = set()
        weakref.finalize(self, _kill_all, self._all)

    @property
    def pids(self) -> list[int]:
        with self._lock:
            return [helper.pid for helper in self._all]

    def run(self, work: Callable[[H], T]) -> T:
        """Do `work` with a helper, waiting until one is free. What `work` raises is raised.

        A helper whose job has not ended then is killed, also where the caller was interrupted. Raises `HelperDiedError`
        after the last try, `HelperSlowError`, and `HelperStartError`.
        """
        with self._free:
            for number in range(1, self._tries + 1):
                try:
                    return self._try(work)
                except HelperDiedError as error:
                    if number == self._tries:
                        raise
                    logger.warning("a %s process died (%s); its job is tried again", self._name, error)
        raise AssertionError("a pool tries at least once")

    def close(self) -> None:
        """End every helper; jobs that still run fail."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
            busy = self._all.difference(idle)
            self._all.difference_update(idle)
        for helper in busy:
            helper.terminate()
        for helper in idle:
            helper.kill()

    def _try(self, work: Callable[[H], T]) -> T:
        helper = self._take()
        try:
            return work(helper)
        finally:
            self._put_back(helper)

    def _take(self) -> H:
        while True:
            with self._lock:
                helper = self._idle.pop() if self._idle else None
            if helper is None:
                return self._start()
            if helper.is_alive:
                return helper
            self._discard(helper)  # somebody ended it while it had nothing to do

    def _start(self) -> H:
        try:
            helper = self._start_helper()
        except (OSError, HelperDiedError, HelperSlowError) as error:
            logger.error("no %s process can be started: %s", self._name, error or "it took too long")
            raise HelperStartError(str(error)) from None
        with self._lock:
            self._all.add(helper)
            if not self._is_closed:
                return helper
        self._discard(helper)
        raise HelperStartError("the pool is closed")

    def _put_back(self, helper: H) -> None:
        with self._lock:
            if helper.is_free and not self._is_closed:
                self._idle.append(helper)
                return
        self._discard(helper)

    def _discard(self, helper: H) -> None:
        with self._lock:
            self._all.discard(helper)
        helper.kill()


def _kill_all(helpers: set[H]) -> None:
    while helpers:
        helpers.pop().kill()
