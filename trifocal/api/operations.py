"""What a route takes and answers, said where it is defined; the OpenAPI document is made of it (`openapi.py`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastapi.routing import APIRoute

from trifocal.api.openai.schemas import Body

READING = (400, 404, 408, 413, 415, 431, 503)  # of a route that reads a body and compares its `model`
PREPARING = (*READING, 500, 504)  # of one that makes a prompt of it, or an answer
_KEY = "operation"


@dataclass(frozen=True)
class Operation:
    """`body` is what `read_json` is given; `answer` a type, None for an empty answer; `errors` are statuses."""

    body: type[Body] | None
    answer: Any
    media_type: str
    streams: bool
    errors: tuple[int, ...]


def described(
    body: type[Body] | None = None,
    answer: Any = None,
    *,
    errors: tuple[int, ...] = (431,),
    media_type: str = "application/json",
    streams: bool = False,
) -> dict[str, Any]:
    """Keywords for the decorator of a route. `streams`: it may answer with server-sent events instead."""
    operation = Operation(body, answer, media_type, streams, errors)
    return {"response_model": None, "openapi_extra": {_KEY: operation}}


def operation_of(route: APIRoute) -> Operation:
    """What was said of a route."""
    operation = (route.openapi_extra or {})[_KEY]
    assert isinstance(operation, Operation)
    return operation
