"""What becomes of the exceptions of routes: each a response in the form of its API."""

from __future__ import annotations

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from trifocal.errors import EngineDeadError, RequestError
from trifocal.http.context import CLIENT_CLOSED, CLIENT_CLOSED_REQUEST, context_of
from trifocal.http.errors import to_error


def install(app: FastAPI) -> None:
    """Give `app` the handlers; what none of them knows is left to `RequestContexts`."""
    app.add_exception_handler(RequestError, _refuse)
    app.add_exception_handler(EngineDeadError, _refuse)
    app.add_exception_handler(HTTPException, _refuse_route)
    app.add_exception_handler(ClientDisconnect, _forget)


async def _refuse(request: Request, error: Exception) -> Response:
    return context_of(request).refusal(to_error(error))


async def _refuse_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = {
        404: f"no such route: {request.url.path[:200]}",
        405: f"{request.method} is not allowed on this route",
    }.get(error.status_code, str(error.detail))
    return context_of(request).refusal(RequestError(message, status=error.status_code), error.headers)


async def _forget(request: Request, error: Exception) -> Response:
    context_of(request).error = CLIENT_CLOSED
    return Response(status_code=CLIENT_CLOSED_REQUEST)
