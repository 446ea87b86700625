"""Times that a request may take: `async with until(...)` gives up with an error of our own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from time import perf_counter

from trifocal.config.server import ServerArgs
from trifocal.errors import RequestError


def timed_out(what: str, flag: str, seconds: float, status: int = 504) -> RequestError:
    """The error of a request that took too long: which part of it, and the flag that says how long it may."""
    code = "request_timeout" if status == 408 else "timeout"
    return RequestError(f"{what} took more than {seconds:g} s (--{flag})", status=status, code=code)


def moment(seconds: float, since: float | None = None) -> float | None:
    """The loop's time `seconds` after now, or after `since` (a `time.perf_counter`); none for 0."""
    passed = 0.0 if since is None else perf_counter() - since
    return asyncio.get_running_loop().time() + seconds - passed if seconds else None


@asynccontextmanager
async def until(when: float | None, error: RequestError) -> AsyncIterator[None]:
    """Cancel the block at the loop's time `when` and raise `error` in its place; the block's own errors pass."""
    limit = asyncio.timeout_at(when)
    try:
        async with limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise
        raise error from None


def within(seconds: float, what: str, flag: str, status: int = 504) -> AbstractAsyncContextManager[None]:
    """`until` in `seconds` from now."""
    return until(moment(seconds), timed_out(what, flag, seconds, status))


def preparing(args: ServerArgs) -> AbstractAsyncContextManager[None]:
    """The time for making a prompt of a body."""
    return within(args.preprocessing_timeout, "preparing the prompt and its media", "preprocessing-timeout")
