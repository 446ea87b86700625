"""Admission: how much work the server accepts at a time. What is too much is a 503 at once.

Nothing waits here, and nothing is taken from one request for another: a request that comes when the room is used up is
told to come again. Belongs to the event loop's thread.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

from trifocal.config.server import ServerArgs
from trifocal.http.errors import OverloadedError

_MAX_RETRY_AFTER_S = 60


class Admission:
    """Counts what all requests hold together. `emptied` is set while none holds anything."""

    def __init__(self, args: ServerArgs) -> None:
        self._args = args
        self._is_draining = False
        self._wait_s = 1.0  # a smoothed time in the queue
        self._num_open = 0
        self.num_queued = 0
        self.num_queued_tokens = 0
        self.num_bytes = 0
        self.emptied = asyncio.Event()
        self.emptied.set()

    @property
    def is_draining(self) -> bool:
        """Whether new work is refused because the server is about to end."""
        return self._is_draining

    def drain(self) -> None:
        """Refuse new work from now on."""
        self._is_draining = True

    def open(self) -> Holding:
        """Let a request in that has only headers yet. Raises `OverloadedError`: its body need not be read then."""
        if self._is_draining:
            raise OverloadedError("the server is shutting down", self.retry_after_s, code="shutting_down")
        self._check_queue()
        return Holding(self)

    @contextmanager
    def place(self) -> Iterator[Place]:
        """A place in the queue, held until the request has its first token. Raises `OverloadedError`."""
        self._check_queue()
        place, came = Place(self), perf_counter()
        self.num_queued += 1
        try:
            yield place
            self._wait_s += 0.1 * (perf_counter() - came - self._wait_s)
        finally:
            self.num_queued -= 1
            self.num_queued_tokens -= place.num_tokens

    def _check_queue(self) -> None:
        most, tokens = self._args.max_queued_requests, self._args.max_queued_tokens
        if self.num_queued >= most:
            raise OverloadedError(
                f"the queue is full: {most} requests are waiting (--max-queued-requests)", self.retry_after_s
            )
        if self.num_queued_tokens >= tokens:
            raise OverloadedError(
                f"the queue is full: {tokens} tokens are waiting (--max-queued-tokens)", self.retry_after_s
            )

    def add_tokens(self, num_tokens: int) -> None:
        """`num_tokens` more are waiting. A request may exceed the limit if it is alone. Raises `OverloadedError`."""
        most = self._args.max_queued_tokens
        if self.num_queued_tokens and self.num_queued_tokens + num_tokens > most:
            raise OverloadedError(
                f"{self.num_queued_tokens} tokens are waiting, and {num_tokens} more would be above {most} "
                "(--max-queued-tokens)", self.retry_after_s,
            )  # fmt: skip
        self.num_queued_tokens += num_tokens

    def take_bytes(self, num_bytes: int) -> None:
        """`num_bytes` more are held. Raises `OverloadedError`."""
        most = self._args.max_media_bytes_in_flight
        if self.num_bytes + num_bytes > most and num_bytes > 0:
            raise OverloadedError(
                f"requests hold {self.num_bytes} bytes of bodies and media, and {num_bytes} more would be above {most} "
                "(--max-media-bytes-in-flight)", self.retry_after_s,
            )  # fmt: skip
        self.num_bytes += num_bytes

    @property
    def retry_after_s(self) -> int:
        """Whole seconds after which a place may be free: about as long as requests wait for their first token."""
        return max(1, min(math.ceil(self._wait_s), _MAX_RETRY_AFTER_S))

    def opened(self) -> None:
        """A `Holding` begins."""
        self._num_open += 1
        self.emptied.clear()

    def closed(self) -> None:
        """A `Holding` ends."""
        self._num_open -= 1
        if self._num_open == 0:
            self.emptied.set()


class Place:
    """One request's place in the queue."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.num_tokens = 0

    def add_tokens(self, num_tokens: int) -> None:
        """The request's prompt is known now. Raises `OverloadedError`."""
        self._admission.add_tokens(num_tokens)
        self.num_tokens += num_tokens


class Holding:
    """The bytes that one request holds: its body and fetched media first, its pixels until its end."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._num_bytes = 0
        self._is_open = True
        admission.opened()

    def take(self, num_bytes: int) -> None:
        """Bytes have come in. Raises `OverloadedError`."""
        self._admission.take_bytes(num_bytes)
        self._num_bytes += num_bytes

    def keep(self, num_bytes: int) -> None:
        """What was held is gone but for `num_bytes`. Raises `OverloadedError`."""
        self.take(num_bytes - self._num_bytes)

    def close(self) -> None:
        """The request has ended; safe to call twice."""
        if self._is_open:
            self._is_open = False
            self.keep(0)
            self._admission.closed()
