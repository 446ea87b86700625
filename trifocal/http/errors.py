"""What a client may see of an exception, as a `RequestError`. Each API writes it in its own form."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec
from starlette.responses import Response

from trifocal.errors import EngineDeadError, RequestError
from trifocal.log import discreet, get_logger

logger = get_logger(__name__)

ErrorForm = Callable[[RequestError], Mapping[str, object]]
"""The JSON object that tells an error in the form of an API."""

_CODES = {
    400: "invalid_value", 404: "not_found", 405: "method_not_allowed", 408: "request_timeout",
    413: "request_too_large", 415: "unsupported_media_type", 431: "headers_too_large", 500: "internal_error",
}  # fmt: skip


class OverloadedError(RequestError):
    """The server has too much to do; the client may come again in `retry_after_s` seconds."""

    def __init__(self, message: str, retry_after_s: int = 1, code: str = "overloaded") -> None:
        super().__init__(message, status=503, code=code)
        self.retry_after_s = retry_after_s


def to_error(error: Exception) -> RequestError:
    """`error` as a client may see it. What is not meant for clients becomes a plain 500 and a line in the log."""
    if isinstance(error, EngineDeadError):  # logged where it was noticed; its text is a library's
        return RequestError("the engine is down; the server's log says more", status=503, code="engine_dead")
    if not isinstance(error, RequestError):
        logger.error("a request failed", exc_info=error)
        return RequestError("internal error; the server's log says more under this x-request-id", status=500)
    if error.status == 500:  # found by the engine: files and addresses are not for clients
        logger.error("a request failed: %s", error.message)
        return RequestError(discreet(error.message), param=error.param, status=500, code=error.code)
    return error


def code_of(error: RequestError) -> str | None:
    """The stable code of an error, for programs."""
    return error.code or _CODES.get(error.status)


def error_response(error: RequestError, form: ErrorForm, headers: Mapping[str, str] | None = None) -> Response:
    """The HTTP response to a request that is refused."""
    if error.status == 503:
        headers = {"Retry-After": str(getattr(error, "retry_after_s", 1)), **(headers or {})}
    return Response(msgspec.json.encode(form(error)), error.status, headers, media_type="application/json")
