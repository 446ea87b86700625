"""Decoder processes from the outside: started when needed, used again, ended and replaced when they misbehave."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import subprocess
import threading
import weakref
from collections.abc import Callable, Collection
from time import monotonic
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from trifocal.errors import RequestError
from trifocal.log import get_logger
from trifocal.media.decode import messages
from trifocal.subprocesses import python_module, python_path

logger = get_logger(__name__)
T = TypeVar("T")
A = TypeVar("A", bound=messages.Answer)
_START_S = 60.0
_MAX_MESSAGE = 64 << 20  # the index of a clip of a million frames is a third of this
_PIPE_BYTES = 1 << 20
_F_SETPIPE_SZ = getattr(fcntl, "F_SETPIPE_SZ", None)
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


class DecoderDiedError(Exception):
    """The process ended in the middle of a job; the message says how."""


class DecoderSlowError(Exception):
    """The job took longer than it may."""


class Decoder:
    """One decoder process and the pipes to it. Not for several threads at once."""

    def __init__(self, memory_bytes: int) -> None:
        """Start it. Raises `OSError`; `DecoderDiedError` if it ends at once."""
        self._process = subprocess.Popen(
            python_module("trifocal.media.decode.process", str(memory_bytes)),
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
        self.is_spent = False
        self._deadline = monotonic() + _START_S
        try:
            self.receive(messages.Ready)
        except BaseException:
            self.kill()
            raise

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def send(self, job: messages.Job, data: bytes) -> None:
        """Begin a job; its time runs from now on."""
        self._deadline = monotonic() + job.file.timeout_s
        self._write(messages.pack(job))
        self._write(data)

    def receive(self, kind: type[A]) -> A:
        """The next message, which must be of `kind`. `RequestError` if the file is refused instead."""
        length = int.from_bytes(self._read(messages.LENGTH_BYTES), "little")
        if length > _MAX_MESSAGE:
            raise DecoderDiedError("it sent nonsense")
        answer = messages.unpack_answer(bytes(self._read(length)))
        if isinstance(answer, messages.Done | messages.Refused):
            self.is_spent = answer.is_spent
        if isinstance(answer, messages.Refused):
            raise RequestError(answer.message, param="messages")
        if not isinstance(answer, kind):
            raise DecoderDiedError("it sent nonsense")
        return answer

    def receive_frame(self, sizes: Collection[tuple[int, int]]) -> NDArray[np.uint8]:
        """The next frame, RGB [height, width, 3]; it must have one of `sizes`."""
        frame = self.receive(messages.Frame)
        if (frame.height, frame.width) not in sizes:
            raise DecoderDiedError("it sent nonsense")
        pixels = np.empty((frame.height, frame.width, 3), np.uint8)
        self._fill(pixels.data.cast("B"))
        return pixels

    def receive_frames(self, frames: NDArray[np.uint8]) -> None:
        """Fill `frames` [number, height, width, 3]."""
        for pixels in frames:
            frame = self.receive(messages.Frame)
            if (frame.height, frame.width) != pixels.shape[:2]:
                raise DecoderDiedError("it sent nonsense")
            self._fill(pixels.data.cast("B"))

    def kill(self) -> None:
        """End it."""
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
            self._wait(self._jobs.fileno(), select.POLLOUT)
            try:
                view = view[os.write(self._jobs.fileno(), view[:_PIPE_BYTES]) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise self._death() from None

    def _read(self, num_bytes: int) -> bytearray:
        data = bytearray(num_bytes)
        self._fill(memoryview(data))
        return data

    def _fill(self, view: memoryview) -> None:
        while view:
            self._wait(self._answers.fileno(), select.POLLIN)
            try:
                count = os.readv(self._answers.fileno(), [view])
            except BlockingIOError:
                continue
            if not count:
                raise self._death()
            view = view[count:]

    def _wait(self, descriptor: int, event: int) -> None:
        poll = select.poll()
        poll.register(descriptor, event)
        if not poll.poll(max(self._deadline - monotonic(), 0) * 1000):
            raise DecoderSlowError

    def _death(self) -> Exception:
        try:
            status = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            return DecoderDiedError("it closed its pipes")
        if status in (-signal.SIGXCPU, -signal.SIGALRM):
            return DecoderSlowError()
        return DecoderDiedError(signal.Signals(-status).name if status < 0 else f"exit status {status}")


class DecoderPool:
    """At most `size` decoders, each with `memory_bytes` beyond what it needs to start. For any number of threads."""

    def __init__(self, size: int, memory_bytes: int) -> None:
        self._memory_bytes = memory_bytes
        self._free = threading.Semaphore(size)
        self._lock = threading.Lock()
        self._is_closed = False
        self._idle: list[Decoder] = []
        self._all: set[Decoder] = set()
        weakref.finalize(self, _kill_all, self._all)

    @property
    def pids(self) -> list[int]:
        """Processes that run now."""
        with self._lock:
            return [decoder.pid for decoder in self._all]

    def run(self, work: Callable[[Decoder], T]) -> T:
        """Do `work` with a decoder, waiting until one is free; it raises `RequestError` if the file is refused.

        A decoder that dies of it is replaced and the work done once more: it may have been somebody else's doing.
        Raises `DecoderDiedError` after the second time, `DecoderSlowError`, and `RequestError` 503 if no process can
        be started.
        """
        with self._free:
            try:
                return self._try(work)
            except DecoderDiedError as error:
                logger.warning("a decoder process died (%s); its job is tried once more", error)
            return self._try(work)

    def close(self) -> None:
        """End every decoder; jobs that still run fail."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
            busy = self._all.difference(idle)
            self._all.difference_update(idle)
        for decoder in busy:
            decoder.terminate()
        for decoder in idle:
            decoder.kill()

    def _try(self, work: Callable[[Decoder], T]) -> T:
        decoder = self._take()
        try:
            result = work(decoder)
        except RequestError:
            self._put_back(decoder)
            raise
        except BaseException:
            self._discard(decoder)
            raise
        self._put_back(decoder)
        return result

    def _take(self) -> Decoder:
        while True:
            with self._lock:
                decoder = self._idle.pop() if self._idle else None
            if decoder is None:
                return self._start()
            if decoder.is_alive:
                return decoder
            self._discard(decoder)  # somebody ended it while it had nothing to do

    def _start(self) -> Decoder:
        try:
            decoder = Decoder(self._memory_bytes)
        except (OSError, DecoderDiedError, DecoderSlowError) as error:
            logger.error("no decoder process can be started: %s", error or "it took too long")
            raise _unavailable() from None
        with self._lock:
            self._all.add(decoder)
            if not self._is_closed:
                return decoder
        self._discard(decoder)
        raise _unavailable()

    def _put_back(self, decoder: Decoder) -> None:
        with self._lock:
            if not decoder.is_spent and not self._is_closed:
                self._idle.append(decoder)
                return
        self._discard(decoder)

    def _discard(self, decoder: Decoder) -> None:
        with self._lock:
            self._all.discard(decoder)
        decoder.kill()


def _kill_all(decoders: set[Decoder]) -> None:
    while decoders:
        decoders.pop().kill()


def _unavailable() -> RequestError:
    return RequestError("media cannot be decoded at the moment", status=503, code="decoder_unavailable")
