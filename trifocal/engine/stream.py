"""`RequestStream`: the deltas of one request on their way from the engine to their reader."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from time import perf_counter

from trifocal.types import Delta


class RequestStream:
    """The deltas of one request, over all its choices. `aclose` at any time, or cancelling its reader, ends it and
    frees what it holds (`end` is called with the ids of its choices). `opened_at` is when the engine was given the
    request, by `time.perf_counter`."""

    def __init__(self, choice_ids: Sequence[str], end: Callable[[Sequence[str]], None]) -> None:
        self.opened_at = perf_counter()
        self._choice_ids = choice_ids
        self._end = end
        self._queue: asyncio.Queue[Delta | Exception] = asyncio.Queue()
        self._num_open = len(choice_ids)

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self

    async def __anext__(self) -> Delta:
        if self._num_open == 0:
            raise StopAsyncIteration
        try:
            item = await self._queue.get()
        except asyncio.CancelledError:  # its reader is gone, as with a generator
            await self.aclose()
            raise
        if isinstance(item, Exception):
            await self.aclose()
            raise item
        if item.finish_reason is not None:
            self._num_open -= 1
        return item

    def put(self, item: Delta | Exception) -> None:
        """Called by the engine."""
        self._queue.put_nowait(item)

    async def aclose(self) -> None:
        """Abort whatever is still running; safe to call at any time and twice."""
        self._num_open = 0
        self._end(self._choice_ids)
