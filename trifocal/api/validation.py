"""Complaints about a body, as a `RequestError` that names the field as the client wrote it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from pydantic import ValidationError

from trifocal.errors import RequestError

_MAX_SHOWN = 60  # characters of a refused number


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


def with_param(error: RequestError, renamed: Mapping[str, str]) -> RequestError:
    """`error` naming the field as the client wrote it."""
    old = error.param or ""
    if old not in renamed:
        return error
    message = error.message.replace(old, renamed[old], 1)  # messages begin with the name of the field
    return RequestError(message, param=renamed[old], status=error.status, code=error.code)
