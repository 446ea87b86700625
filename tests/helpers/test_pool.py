"""`HelperPool` and `Lanes`. What the helpers themselves may do: media/decode/test_process, prompt/test_sandbox."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest

from trifocal.helpers.lanes import Lanes
from trifocal.helpers.pool import Helper, HelperDiedError, HelperPool, HelperSlowError, HelperStartError
from trifocal.prompt.sandbox import Renderer


def echo(helper: Helper, seconds: float = 30.0, source: str = "hi") -> bytes:
    """A whole job."""
    helper.start_job(seconds)
    helper.send(b'{"source": "%s", "context": {}, "max_chars": 99, "cpu_s": 20, "wall_s": 20}' % source.encode())
    answer = helper.receive()
    helper.end_job()
    return answer


def pool_of(**options: Any) -> closing[HelperPool[Renderer]]:
    return closing(HelperPool(Renderer, name="test", **options))


def test_a_helper_in_the_middle_of_a_job_serves_nobody_else() -> None:
    """Whoever was interrupted has not read its answer, which would be the next one's."""

    def interrupted(helper: Helper) -> None:
        helper.start_job(30.0)
        helper.send(b"{}")
        raise KeyboardInterrupt

    def failed_afterwards(helper: Helper) -> None:
        echo(helper)
        raise ZeroDivisionError

    with pool_of() as pool:
        assert pool.run(echo) == b'{"text": "hi"}'
        [first] = pool.pids
        with pytest.raises(ZeroDivisionError):
            pool.run(failed_afterwards)
        assert pool.pids == [first], "its answer was read: it is as good as before"
        with pytest.raises(KeyboardInterrupt):
            pool.run(interrupted)
        assert pool.pids == [] and pool.run(echo) == b'{"text": "hi"}'


def test_the_clock_of_the_pool_holds_where_that_of_the_helper_is_late() -> None:
    with pool_of(tries=2) as pool:
        began = time.monotonic()
        with pytest.raises(HelperSlowError):
            pool.run(lambda helper: echo(helper, 0.2, "{% for a in range(9999) %}" * 3 + "{% endfor %}" * 3))
        assert time.monotonic() - began < 10 and pool.pids == []


def test_how_often_a_job_is_tried() -> None:
    seen: list[int] = []

    def deadly(helper: Helper) -> bytes:
        seen.append(helper.pid)
        helper.start_job(30.0)
        if len(seen) != 4:
            helper.terminate()
        return echo(helper)

    with pool_of(tries=2) as pool:
        with pytest.raises(HelperDiedError, match="SIGKILL"):
            pool.run(deadly)
        assert len(set(seen)) == 2
        assert pool.run(deadly) == b'{"text": "hi"}' and len(set(seen)) == 4


def test_waiting_for_a_helper_and_closing() -> None:
    """With one helper jobs come one after the other; a pool that is closed ends the running one, and starts no more."""
    began, numbers, most = threading.Event(), [0], [0]

    def counted(helper: Helper) -> bytes:
        numbers[0] += 1
        most[0] = max(most[0], numbers[0])
        answer = echo(helper)
        numbers[0] -= 1
        return answer

    def endless(helper: Helper) -> bytes:
        began.set()
        return echo(helper, 60.0, "{% for a in range(9999) %}" * 3 + "{% endfor %}" * 3)

    with ThreadPoolExecutor(4) as threads, pool_of(size=1) as pool:
        assert list(threads.map(lambda _: pool.run(counted), range(20))) == [b'{"text": "hi"}'] * 20
        assert most == [1] and len(pool.pids) == 1
        running = threads.submit(pool.run, endless)
        assert began.wait(10)
        pool.close()
        assert isinstance(running.exception(10), HelperDiedError)
        with pytest.raises(HelperStartError, match="closed"):
            pool.run(echo)


async def test_slow_work_starts_over_in_a_lane_of_its_own() -> None:
    lanes, done, asked = Lanes(1, "test"), threading.Event(), []

    def slow(*, max_seconds: float | None = None) -> str:
        asked.append(max_seconds)
        if max_seconds is not None:
            raise HelperSlowError
        done.wait(30)
        return "slow"

    waiting = [asyncio.create_task(lanes.run_timed(slow)) for _ in range(3)]
    while None not in asked:
        await asyncio.sleep(0.01)
    async with asyncio.timeout(10):
        assert await lanes.run_timed(lambda *, max_seconds=None: max_seconds) == 0.5, "nobody quick waits for them"
        waiting[1].cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting[1]
    done.set()
    assert [await waiting[0], await waiting[2]] == ["slow", "slow"]
    lanes.close()
