"""`Lanes`: threads for work that is usually quick, where what takes long holds up only its like."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Protocol, TypeVar

from trifocal.helpers.pool import HelperSlowError
from trifocal.threads import Threads

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
_QUICK_SECONDS = 0.5  # of computing, that others wait for


class Timed(Protocol[T_co]):
    """Work that can be given less time than it would take: then it raises `HelperSlowError`."""

    def __call__(self, *, max_seconds: float | None = None) -> T_co: ...


class Lanes:
    """A quick lane of `num_threads`, and a slow one of one thread. Cancelling a call does not wait for its thread."""

    def __init__(self, num_threads: int, name: str) -> None:
        self._quick = Threads(num_threads, name)
        self._slow = Threads(1, f"slow-{name}")

    async def run(self, work: Callable[[], T]) -> T:
        """What is known to be quick."""
        return await asyncio.get_running_loop().run_in_executor(self._quick, work)

    async def run_timed(self, work: Timed[T]) -> T:
        """What may take long: then it starts over in the slow lane, with all the time that it may have."""
        try:
            return await self.run(partial(work, max_seconds=_QUICK_SECONDS))
        except HelperSlowError:
            return await asyncio.get_running_loop().run_in_executor(self._slow, work)

    def close(self) -> None:
        """Take no more work."""
        for threads in (self._quick, self._slow):
            threads.shutdown(wait=False, cancel_futures=True)
