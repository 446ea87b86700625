"""The observer of a prompt that is being made: it hears of bytes as they come in, and of steps when they have ended."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from time import perf_counter
from typing import Protocol


class Watch(Protocol):
    """An onlooker, called on the event loop. What `fetched` raises ends the request."""

    def fetched(self, num_bytes: int) -> None:
        """Bytes of media have come."""

    def took(self, step: str, seconds: float) -> None:
        """A step (`fetch`, `decode`, `process`) is over."""


class _Nobody:
    def fetched(self, num_bytes: int) -> None:
        """Nothing."""

    def took(self, step: str, seconds: float) -> None:
        """Nothing."""


_NOBODY = _Nobody()
watching: ContextVar[Watch] = ContextVar("watching", default=_NOBODY)
"""The onlooker of the request that is worked on. The server sets it, so that builders need not hand it down."""


@contextmanager
def timed(step: str) -> Iterator[None]:
    """Tell the onlooker how long the block took, if it did not fail."""
    started = perf_counter()
    yield
    watching.get().took(step, perf_counter() - started)
