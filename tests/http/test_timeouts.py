"""`until`: its own error at its own time, everybody else's errors untouched."""

from __future__ import annotations

import asyncio
import time

import pytest

from trifocal.errors import RequestError
from trifocal.http.timeouts import moment, timed_out, until, within


async def test_in_time() -> None:
    async with within(60, "it", "it-timeout"):
        await asyncio.sleep(0)
    async with within(0, "it", "it-timeout"):  # no limit
        await asyncio.sleep(0.01)


async def test_too_late() -> None:
    with pytest.raises(RequestError, match=r"it took more than 0.01 s \(--it-timeout\)") as caught:
        async with within(0.01, "it", "it-timeout"):
            await asyncio.sleep(60)
    assert (caught.value.status, caught.value.code) == (504, "timeout")
    assert timed_out("it", "it-timeout", 1, 408).code == "request_timeout"


async def test_errors_of_the_block_pass() -> None:
    with pytest.raises(TimeoutError):
        async with within(60, "it", "it-timeout"):
            raise TimeoutError("of its own")
    with pytest.raises(asyncio.CancelledError):
        async with within(60, "it", "it-timeout"):
            raise asyncio.CancelledError


async def test_the_inner_limit_is_named() -> None:
    with pytest.raises(RequestError, match="--inner"):
        async with within(60, "all", "outer"), within(0.01, "part", "inner"):
            await asyncio.sleep(60)


async def test_time_that_has_passed_counts() -> None:
    began = time.perf_counter() - 100
    with pytest.raises(RequestError):
        async with until(moment(50, since=began), timed_out("it", "it-timeout", 50)):
            await asyncio.sleep(60)
    assert moment(0, since=began) is None
