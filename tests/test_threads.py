"""`Threads` as an executor, and loops in threads. At the end of a process: engine/test_shared_engine."""

from __future__ import annotations

import asyncio
import gc
import inspect
import threading
from concurrent.futures import CancelledError, wait
from typing import Any

import pytest

from trifocal.threads import LoopThread, Threads


def test_as_many_threads_as_are_needed_and_no_more() -> None:
    threads = Threads(3, "test-some")
    assert [threads.submit(pow, 2, exp=k).result() for k in range(5)] == [1, 2, 4, 8, 16]
    assert len(threads._threads) <= 2, "one that is idle is used again"
    gate = threading.Barrier(3)
    assert not wait([threads.submit(gate.wait, 10) for _ in range(3)], 10).not_done, "they run at once"
    names = {threads.submit(lambda: threading.current_thread().name).result() for _ in range(20)}
    assert len(threads._threads) == 3
    assert all(name.startswith("test-some_") for name in names)
    threads.shutdown()
    assert not any(thread.is_alive() for thread in threads._threads)


def test_errors_come_through_and_kill_no_thread() -> None:
    threads = Threads(1, "test")
    assert isinstance(threads.submit(lambda: 1 / 0).exception(10), ZeroDivisionError)
    assert threads.submit(lambda: 1).result(10) == 1
    threads.shutdown()
    threads.shutdown()
    with pytest.raises(RuntimeError, match="shut down"):
        threads.submit(lambda: 1)


def test_shutdown_finishes_what_was_taken_or_cancels_it() -> None:
    for is_cancelled in (False, True):
        threads, begun, go_on = Threads(1, "test"), threading.Event(), threading.Event()
        first = threads.submit(lambda: (begun.set(), go_on.wait(10)))  # noqa: B023
        later = [threads.submit(lambda: 1) for _ in range(3)]
        assert begun.wait(10)
        threads.shutdown(wait=False, cancel_futures=is_cancelled)
        go_on.set()
        assert first.result(10)
        for future in later:
            if is_cancelled:
                with pytest.raises(CancelledError):
                    future.result(10)
            else:
                assert future.result(10) == 1


def test_dropped_threads_end() -> None:
    threads = Threads(2, "test")
    threads.submit(lambda: 1).result(10)
    (thread,) = threads._threads
    del threads
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()


def test_a_coroutine_runs_beside_the_callers_own_loop() -> None:
    loop = LoopThread()

    async def work() -> str:
        await asyncio.sleep(0)
        return threading.current_thread().name

    async def caller() -> str:
        return loop.run(work())

    assert asyncio.run(caller()) == loop.run(work()) == "trifocal-loop"

    async def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        loop.run(fail())
    loop.end()
    with pytest.raises(RuntimeError):
        loop.run(work())


@pytest.mark.parametrize("how", ["interrupt", "end"])
def test_what_ends_the_caller_or_the_loop_cancels_the_coroutine(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    loop, begun, cancelled = LoopThread(), threading.Event(), threading.Event()

    async def work() -> None:
        begun.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    def interrupted(*_: object) -> None:
        assert begun.wait(10)
        raise KeyboardInterrupt

    if how == "interrupt":
        monkeypatch.setattr("trifocal.threads.wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            loop.run(work())
    else:
        threading.Thread(target=lambda: (begun.wait(10), loop.end())).start()
        with pytest.raises((CancelledError, asyncio.CancelledError)):
            loop.run(work())
    assert cancelled.wait(10)
    loop.end()


def test_a_dropped_loop_ends() -> None:
    loop = LoopThread()
    thread = loop._thread
    del loop
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()


def test_what_is_interrupted_while_it_begins_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    thread = LoopThread()
    begin = thread._loop.call_soon_threadsafe

    def begin_and_interrupt(*call: Any) -> None:
        monkeypatch.undo()
        begin(*call)
        raise KeyboardInterrupt

    monkeypatch.setattr(thread._loop, "call_soon_threadsafe", begin_and_interrupt)
    coroutine = asyncio.sleep(60)
    with pytest.raises(KeyboardInterrupt):
        thread.run(coroutine)
    thread.run(asyncio.sleep(0))  # behind what was asked for before
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED
    thread.end()
