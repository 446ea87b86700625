"""The API key: a bearer token on every route but the few that say nothing about the service's work."""

from __future__ import annotations

import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from trifocal.server.errors import error_response
from trifocal.types import RequestError

OPEN_PATHS = frozenset({"/health", "/ping", "/version"})


class BearerAuth:
    """ASGI middleware: 401 unless the request brings `Authorization: Bearer <key>`."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app = app
        self._key = key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass an allowed request on, answer any other."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or self._is_allowed(Headers(scope=scope)):
            await self._app(scope, receive, send)
            return
        error = RequestError("a valid API key is needed: Authorization: Bearer KEY", status=401, code="invalid_api_key")
        await error_response(error, {"WWW-Authenticate": "Bearer"})(scope, receive, send)

    def _is_allowed(self, headers: Headers) -> bool:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        # Headers are latin-1 to ASGI but bytes on the wire; the comparison takes the same time wherever they differ.
        return scheme.lower() == "bearer" and hmac.compare_digest(token.strip().encode("latin-1"), self._key)
