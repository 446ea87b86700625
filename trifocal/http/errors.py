"""Every error that a client sees, in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

import msgspec
from pydantic import ValidationError
from starlette.responses import Response

from trifocal.api.openai.responses import ErrorAnswer
from trifocal.errors import EngineDeadError, RequestError
from trifocal.log import discreet, get_logger

logger = get_logger(__name__)
_MAX_SHOWN = 60  # characters of a refused number
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
        return RequestError("internal error; the server's log says more, under this x-request-id", status=500)
    if error.status == 500:  # found by the engine: files and addresses are not for clients
        logger.error("a request failed: %s", error.message)
        return RequestError(discreet(error.message), param=error.param, status=500, code=error.code)
    return error


def code_of(error: RequestError) -> str | None:
    """The stable word for an error."""
    return error.code or _CODES.get(error.status)


def error_body(error: RequestError) -> ErrorAnswer:
    """The body of an error response, and the data of an error event in a stream."""
    kind: Literal["server_error", "invalid_request_error"] = (
        "server_error" if error.status >= 500 else "invalid_request_error"
    )
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": code_of(error)}}


def error_response(error: RequestError, headers: Mapping[str, str] | None = None) -> Response:
    """The HTTP response of a refused request."""
    if error.status == 503:
        headers = {"Retry-After": str(getattr(error, "retry_after_s", 1)), **(headers or {})}
    return Response(msgspec.json.encode(error_body(error)), error.status, headers, media_type="application/json")


def explain(error: ValidationError) -> RequestError:
    """The first of pydantic's complaints as one sentence that names the field."""
    first = error.errors(include_url=False, include_context=False)[0]
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).removeprefix(".")
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
        complaint = re.sub(r"\ba valid (?=[aeiou])", "an ", complaint).replace("a valid ", "a ")
        message = f"{path} {complaint}, got {shown(first['input'])}"
    return RequestError(message, param=str(first["loc"][0]), code="invalid_value")


def shown(value: object) -> str:
    """`value` as a message may tell it: numbers are quoted, texts are not, they may be prompts or pictures."""
    if isinstance(value, str):
        return f"a string of {len(value)} characters"
    if isinstance(value, list | dict):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    if isinstance(value, int) and abs(value) > 1 << 64:  # Python refuses to print integers of thousands of digits
        return "an integer beyond 64 bits"
    return repr(value)[:_MAX_SHOWN]
