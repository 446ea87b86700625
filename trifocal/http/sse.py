"""Server-sent events: `data: {json}` lines, an error event where a stream breaks, `data: [DONE]` at its end."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import msgspec
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from trifocal.api.openai.extras import event_of
from trifocal.http.context import CLIENT_CLOSED, Visit, visit_in
from trifocal.http.disconnect import unless_disconnected
from trifocal.http.errors import code_of, error_body, to_error

DONE = b"data: [DONE]\n\n"
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # a proxy that buffers is no stream


def event(data: Mapping[str, Any]) -> bytes:
    """One event."""
    return b"data: " + msgspec.json.encode(data) + b"\n\n"


class Closeable(Protocol):
    """Something that works until it is told to stop."""

    async def aclose(self) -> None:
        """Stop; safe at any time."""


class EventStream(Response):
    """A response that sends `chunks` as events while they come, and closes their `source` at the end or a hang-up.

    The first one names the ignored fields of the request, too.

    An exception of the generator, and of the time `limit` around it, becomes an error event, then the stream ends
    without `[DONE]`. The source is closed here and not by the generator: one that was never started runs no `finally`.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        chunks: AsyncGenerator[dict[str, Any], None],
        source: Closeable,
        limit: Callable[[], AbstractAsyncContextManager[None]],
    ) -> None:
        self._chunks = chunks
        self._source = source
        self._limit = limit
        self.status_code = 200
        self.background = None
        self.init_headers(_HEADERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the generator or the client is done."""
        try:
            await unless_disconnected(receive, self._send(visit_in(scope), send))
        except ClientDisconnect:
            visit_in(scope).error = CLIENT_CLOSED
        finally:
            await self._source.aclose()

    async def _send(self, visit: Visit, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        last, told = DONE, event_of(visit.ignored)
        try:
            async with self._limit():
                async for chunk in self._chunks:
                    await send({"type": "http.response.body", "body": event({**chunk, **told}), "more_body": True})
                    told = {}
        except Exception as error:  # the status line is gone: the stream itself must tell
            refusal = to_error(error)
            visit.error = code_of(refusal)
            last = event(error_body(refusal))
        await send({"type": "http.response.body", "body": last, "more_body": False})
