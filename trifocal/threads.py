"""`Threads`: an executor that works until the end of the process. `LoopThread`: an event loop for those without one.

`end_at_exit`: what has threads that nobody joins is ended when the process ends.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Executor, Future, wait
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from threading import Lock, Semaphore, Thread, current_thread
from typing import Any, Generic, ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
_WAKE_S = 0.2  # so often a waiting thread looks up: an exception that another one sends to it is not seen before
_Job = tuple["Future[Any]", Callable[[], Any]]
_Jobs = SimpleQueue[_Job | None]


class Threads(Executor):
    """As `ThreadPoolExecutor`, but nothing is refused before `shutdown`.

    Python closes its own pools as soon as the main thread ends, while other threads of the program go on. These are
    closed at exit, when no such thread is left; jobs that run are waited for.
    """

    def __init__(self, max_workers: int, thread_name_prefix: str) -> None:
        self._max_workers = max_workers
        self._name = thread_name_prefix
        self._jobs: _Jobs = SimpleQueue()
        self._num_idle = Semaphore(0)
        self._lock = Lock()
        self._threads: list[Thread] = []
        self._is_shut = False
        weakref.finalize(self, self._jobs.put, None).atexit = False
        end_at_exit(self)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Queue a call. Raises `RuntimeError` after `shutdown`."""
        future: Future[T] = Future()
        with self._lock:
            if self._is_shut:
                raise RuntimeError("the threads have been shut down")
            self._jobs.put((future, partial(fn, *args, **kwargs)))
            if not self._num_idle.acquire(blocking=False) and len(self._threads) < self._max_workers:
                name = f"{self._name}_{len(self._threads)}"
                thread = Thread(target=_work, args=(self._jobs, self._num_idle), name=name, daemon=True)
                self._threads.append(thread)
                thread.start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; `wait` for those that were taken, or first cancel those that have not begun."""
        with self._lock:
            self._is_shut = True
            while cancel_futures and (job := _next(self._jobs)) is not None:
                job[0].cancel()
            self._jobs.put(None)
        for thread in self._threads if wait else ():
            if thread is not current_thread():
                thread.join()

    def end(self) -> None:
        """Take no more calls and wait for those that run."""
        self.shutdown(cancel_futures=True)


def _next(jobs: _Jobs) -> _Job | None:
    try:
        return jobs.get_nowait()
    except Empty:
        return None


def _work(jobs: _Jobs, num_idle: Semaphore) -> None:
    while True:
        try:
            job = jobs.get_nowait()
        except Empty:
            num_idle.release()
            job = jobs.get()
        if job is None:
            jobs.put(None)  # for the next thread
            return
        _run(*job)
        del job  # it may hold much, and the next one may be long in coming


def _run(future: Future[Any], call: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = call()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)


class LoopThread:
    """An event loop in a thread of its own, for callers without one, or whose own must not be used. Thread-safe."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        # Not with each call: CPython may give the new thread an exception that is sent to the one that starts it.
        self._thread = Thread(target=_serve, args=(self._loop,), name="trifocal-loop", daemon=True)
        self._thread.start()
        weakref.finalize(self, _stop, self._loop).atexit = False
        end_at_exit(self)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """What it returns. Whatever interrupts the caller (KeyboardInterrupt) cancels it, and so does `end`.

        Raises `RuntimeError` after `end`.
        """
        job = _LoopJob(coroutine)  # before it is begun: from then on an exception at any point must find it, to drop it
        try:
            try:
                self._loop.call_soon_threadsafe(job.start)
            except RuntimeError:
                coroutine.close()
                raise
            while not wait([job.future], _WAKE_S).done:
                if not self._thread.is_alive() and not job.future.done():
                    raise RuntimeError("the thread of the event loop has ended")
            return job.future.result()
        finally:
            with suppress(RuntimeError):  # the loop is closed already
                self._loop.call_soon_threadsafe(job.drop)

    def end(self) -> None:
        """Cancel what runs, and end the thread."""
        _stop(self._loop)
        self._thread.join()


class _LoopJob(Generic[T]):
    """A coroutine for the loop. `start` and `drop` are called there, in this order or in the other."""

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self.future: Future[T] = Future()
        self._coroutine = coroutine
        self._task: asyncio.Task[T] | None = None
        self._is_dropped = False

    def start(self) -> None:
        if not self._is_dropped:
            self._task = asyncio.ensure_future(self._coroutine)
            self._task.add_done_callback(self._deliver)

    def drop(self) -> None:
        self._is_dropped = True
        if self._task is None:
            self._coroutine.close()
        else:
            self._task.cancel()

    def _deliver(self, task: asyncio.Task[T]) -> None:
        if task.cancelled():
            self.future.set_exception(CancelledError())
        elif (error := task.exception()) is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(task.result())


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    with asyncio.Runner(loop_factory=lambda: loop) as runner:  # cancels what is left, and closes the loop
        runner.get_loop().run_forever()


def _stop(loop: asyncio.AbstractEventLoop) -> None:
    with suppress(RuntimeError):  # it is closed already
        loop.call_soon_threadsafe(loop.stop)


class Endable(Protocol):
    """What has threads."""

    def end(self) -> None:
        """End them, and wait until they have."""


_LIVE: weakref.WeakKeyDictionary[Endable, int] = weakref.WeakKeyDictionary()  # with the process whose threads they are


def end_at_exit(thing: Endable) -> None:
    """Have `thing` end when this process does and no thread is left that holds that up; the newest ends first.

    Threads that compute while Python goes away crash it.
    """
    _LIVE[thing] = os.getpid()


@atexit.register
def _end_all() -> None:
    for thing, pid in reversed(list(_LIVE.items())):
        if pid == os.getpid():
            thing.end()
