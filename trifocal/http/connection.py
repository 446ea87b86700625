"""One client's connection: uvicorn's h11 protocol with a time limit on headers, and errors in the form of an API."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import h11
import msgspec
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from trifocal.errors import RequestError
from trifocal.http.errors import ErrorForm

_HEADERS_S = 30.0  # from the first moment of a connection, or of a further request on it, to the end of its headers


class Connection(H11Protocol):
    """Closed when it does not get a request together in time: uvicorn itself would wait for its headers for ever."""

    def __init__(self, *args: Any, error_form: ErrorForm, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._error_form = error_form
        self._header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The time begins before the first byte."""
        super().connection_made(transport)
        self._watch_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """No timer outlives its connection."""
        super().connection_lost(exc)
        self._stop_timer()

    def data_received(self, data: bytes) -> None:
        """Bytes arrived: of headers, or of a body."""
        super().data_received(data)
        self._watch_headers()

    def on_response_complete(self) -> None:
        """The rest of a body that nobody wants has as long as headers have; until new bytes come, uvicorn waits."""
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:
            self._watch_headers()

    def _watch_headers(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_timer()
        elif self._header_timer is None:
            self._header_timer = self.loop.call_later(_HEADERS_S, self._give_up)

    def _stop_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _give_up(self) -> None:
        self._header_timer = None
        if not self.transport.is_closing():
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn from within its `except` block, where h11's hint at the status can still be had."""
        status = getattr(sys.exception(), "error_status_hint", 400)
        message = msg if status != 431 else "the headers are too large (--h11-max-incomplete-event-size)"
        body = msgspec.json.encode(self._error_form(RequestError(message, status=status, code=None)))
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        for event in (
            h11.Response(status_code=status, headers=headers, reason=STATUS_PHRASES[status]),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
