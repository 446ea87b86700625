"""What a route takes and answers, said where it is defined; the OpenAPI document is made of it (`openapi.py`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastapi.routing import APIRoute
from pydantic import BaseModel

GET = ["GET", "HEAD"]  # the methods of a route that is asked and changes nothing
READING = (400, 404, 408, 413, 415, 431, 503)  # of a route that reads a body and compares its `model`
PREPARING = (*READING, 500, 504)  # of one that makes a prompt of it, or an answer
_KEY = "operation"


@dataclass(frozen=True)
class Operation:
    """`body` is the model of what a route reads; `answer` a type, None for an empty answer; `errors` are statuses."""

    body: type[BaseModel] | None
    answer: Any
    media_type: str
    streams: bool
    errors: tuple[int, ...]
    error: Any


def described(
    body: type[BaseModel] | None = None,
    answer: Any = None,
    *,
    errors: tuple[int, ...] = (431,),
    media_type: str = "application/json",
    streams: bool = False,
    error: Any = None,
) -> dict[str, Any]:
    """Keywords for the decorator of a route. `streams`: it may answer with server-sent events instead.
    `error`: the type of the body of a refusal, where it is not OpenAI's.
    """
    operation = Operation(body, answer, media_type, streams, errors, error)
    return {"response_model": None, "openapi_extra": {_KEY: operation}}


def operation_of(route: APIRoute) -> Operation:
    """What was said of a route."""
    operation = (route.openapi_extra or {})[_KEY]
    assert isinstance(operation, Operation)
    return operation
