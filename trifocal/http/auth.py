"""API keys: a bearer token on every route but the few that probes ask, which say nothing about the service's work."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from hashlib import sha256

from starlette.types import ASGIApp, Receive, Scope, Send

from trifocal.errors import RequestError
from trifocal.http.context import context_in, path_in

OPEN_PATHS = frozenset({"/health", "/live", "/ready", "/ping"})


class BearerAuth:
    """ASGI middleware: 401 unless the request brings `Authorization: Bearer <key>` with one of the keys."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        self._digests = [_digest(key.encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass an allowed request on, answer any other."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        context = context_in(scope)
        if path_in(scope) in OPEN_PATHS or self._is_allowed(context.headers.get("authorization", "")):
            await self._app(scope, receive, send)
            return
        error = RequestError(
            "a valid API key is needed; send the header Authorization: Bearer KEY", status=401, code="invalid_api_key"
        )
        await context.refusal(error, {"WWW-Authenticate": "Bearer"})(scope, receive, send)

    def _is_allowed(self, authorization: str) -> bool:
        scheme, _, token = authorization.partition(" ")
        # Headers are latin-1 to ASGI but bytes on the wire. Digests are compared, all of them and to their ends, so
        # that the time taken tells neither where nor how far a key was right, nor how long it is.
        digest = _digest(token.strip().encode("latin-1"))
        return sum(hmac.compare_digest(digest, known) for known in self._digests) > 0 and scheme.lower() == "bearer"


def _digest(key: bytes) -> bytes:
    return sha256(key).digest()
