"""Errors in OpenAI's form: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

from typing import Literal

from trifocal.api.openai.objects import ErrorAnswer
from trifocal.errors import RequestError
from trifocal.http.errors import code_of


def error_form(error: RequestError) -> ErrorAnswer:
    """The body of an error response, and the data of an error event in a stream."""
    kind: Literal["server_error", "invalid_request_error"] = (
        "server_error" if error.status >= 500 else "invalid_request_error"
    )
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": code_of(error)}}
