"""Every error that a client sees, in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from trifocal.types import EngineDeadError, RequestError

_MAX_SHOWN = 60  # characters of a refused value that are shown to its sender
_CLIENT_CLOSED_REQUEST = 499  # nginx's word for it; nobody is left to read it, but logs show it
_CODES = {400: "invalid_value", 404: "not_found", 405: "method_not_allowed", 413: "request_too_large"}


def to_error(error: Exception) -> RequestError:
    """`error` as a client may see it: what is not meant for clients becomes a plain 500."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, EngineDeadError):
        return RequestError(f"the engine is down: {error}", status=503, code="engine_dead")
    return RequestError("internal error; the server's log says more", status=500, code="internal_error")


def error_body(error: RequestError) -> dict[str, Any]:
    """The body of an error response, and the data of an error event in a stream."""
    kind = "server_error" if error.status >= 500 else "invalid_request_error"
    code = error.code or _CODES.get(error.status)
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": code}}


def error_response(error: RequestError, headers: Mapping[str, str] | None = None) -> Response:
    """The HTTP response of a refused request."""
    content = msgspec.json.encode(error_body(error))
    return Response(content, error.status, headers, media_type="application/json")


def explain(error: ValidationError) -> RequestError:
    """The first of pydantic's complaints as one sentence that names the field."""
    first = error.errors(include_url=False, include_context=False)[0]
    path = ".".join(str(part) for part in first["loc"])
    if first["type"] == "json_invalid":
        return RequestError(
            f"the body is not valid JSON: {first['msg'].removeprefix('Invalid JSON: ')}", code="invalid_json"
        )
    if not path:
        return RequestError("the body must be a JSON object", code="invalid_json")
    if first["type"] == "missing":
        message = f"{path} is required"
    elif first["type"] == "too_short":
        message = f"{path} must not be empty"
    else:
        complaint = first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        message = f"{path} {complaint}, got {shown(first['input'])}"
    return RequestError(message, param=str(first["loc"][0]), code="invalid_value")


def shown(value: object) -> str:
    """`value` short enough for a message: a client's 20 MB picture is not sent back to it."""
    if isinstance(value, str | bytes | list | tuple):
        value = value[:_MAX_SHOWN]
    elif isinstance(value, int) and abs(value) > 1 << 64:  # Python refuses to print integers of thousands of digits
        return "an integer beyond 64 bits"
    text = repr(value) if not isinstance(value, dict) else f"an object with the keys {shown(list(value)[:8])}"
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


def install(app: FastAPI) -> None:
    """Give `app` the handlers that turn every exception of a route into `error_response`."""

    async def refuse(request: Request, error: Exception) -> Response:
        return error_response(to_error(error))

    async def refuse_route(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = {404: f"no such route: {request.url.path[:200]}", 405: f"{request.method} is not allowed here"}.get(
            error.status_code, str(error.detail)
        )
        return error_response(RequestError(message, status=error.status_code), error.headers)

    async def forget(request: Request, error: Exception) -> Response:
        return Response(status_code=_CLIENT_CLOSED_REQUEST)

    app.add_exception_handler(RequestError, refuse)
    app.add_exception_handler(EngineDeadError, refuse)
    app.add_exception_handler(HTTPException, refuse_route)
    app.add_exception_handler(ClientDisconnect, forget)
    app.add_exception_handler(Exception, refuse)
