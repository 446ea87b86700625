"""Server-sent events: frames of a stream as they come, with an error among them where the stream breaks."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from trifocal.errors import RequestError
from trifocal.http.context import CLIENT_CLOSED, RequestContext, context_in
from trifocal.http.disconnect import unless_disconnected
from trifocal.http.errors import code_of, to_error

_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # a proxy that buffers is no stream


def frame(data: bytes, event: str | None = None) -> bytes:
    """One event of one line of `data`, with a name if the API names its events."""
    head = b"" if event is None else b"event: " + event.encode() + b"\n"
    return head + b"data: " + data + b"\n\n"


class Closeable(Protocol):
    """Something that works until it is closed."""

    async def aclose(self) -> None:
        """Stop; safe at any time."""


class EventStream(Response):
    """A response that sends `frames` while they come, and closes their `source` at the end or a hang-up.

    An exception of the generator, and of the time `limit` around it, becomes the last frame: what `error_frame` makes
    of it. The source is closed here and not by the generator: one that was never started runs no `finally`.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        frames: AsyncGenerator[bytes, None],
        source: Closeable,
        limit: Callable[[], AbstractAsyncContextManager[None]],
        error_frame: Callable[[RequestError], bytes],
    ) -> None:
        self._frames = frames
        self._source = source
        self._limit = limit
        self._error_frame = error_frame
        self.status_code = 200
        self.background = None
        self.init_headers(_HEADERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the generator or the client is done."""
        try:
            await unless_disconnected(receive, self._send(context_in(scope), send))
        except ClientDisconnect:
            context_in(scope).error = CLIENT_CLOSED
        finally:
            await self._source.aclose()

    async def _send(self, context: RequestContext, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        last = b""
        try:
            async with self._limit():
                async for each in self._frames:
                    await send({"type": "http.response.body", "body": each, "more_body": True})
        except Exception as error:  # the status line is gone: the stream itself must tell
            refusal = to_error(error)
            context.error = code_of(refusal)
            last = self._error_frame(refusal)
        await send({"type": "http.response.body", "body": last, "more_body": False})
