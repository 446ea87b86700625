"""Types of fields of bodies.

They are strict with two exceptions: a flag may be 0 or 1, because the scripts of vLLM's users send `stream` that way,
and an integer may be written `32.0`, as some languages write all their numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from trifocal.prompt.item_options import media_io_schema, reading_layer
from trifocal.prompt.message_schema import message_schema
from trifocal.prompt.part_options import whole

_MAX_BIASES = 1 << 18  # more than any vocabulary has tokens
TOKEN_ID = re.compile("[0-9]{1,10}")
"""How the keys of `logit_bias` are written."""


def _flag(value: object) -> object:
    return bool(value) if type(value) in (int, float) and value in (0, 1) else value


def whole_items(value: object) -> object:
    """A list of numbers with the whole ones as integers; there may be a million, hence no validator for each."""
    if isinstance(value, list) and any(type(item) is float for item in value):
        return [whole(item) for item in value]
    return value


def _strings(value: object) -> object:
    if value is None or isinstance(value, str) or is_list_of(value, str):
        return value
    raise ValueError("must be a string or a list of strings")


def is_list_of(value: object, kind: type) -> bool:
    """Whether `value` is a list of items of this very type."""
    return isinstance(value, list) and all(type(item) is kind for item in value)


def _biases(value: object) -> object:
    if value is None or (isinstance(value, dict) and len(value) <= _MAX_BIASES and _are_numbers(value.values())):
        return value
    raise ValueError("must be an object of numbers, one a token")


def _are_numbers(values: Iterable[object]) -> bool:
    return all(type(value) in (int, float) for value in values)


def _media_io(value: dict[str, Any] | None) -> dict[str, Any] | None:
    reading_layer(value or {})
    return value


Flag = Annotated[bool, BeforeValidator(_flag, json_schema_input_type=bool | Literal[0, 1])]
Int32 = Annotated[int, Field(ge=-(2**31), lt=2**31), BeforeValidator(whole)]  # what the engine's tensors hold
Int64 = Annotated[int, Field(ge=-(2**63), lt=2**63), BeforeValidator(whole)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Text = Annotated[str, Field(min_length=1)]
Strings = Annotated[Any, BeforeValidator(_strings, json_schema_input_type=Text | list[Text] | None)]
# The first wrong item is enough: a complaint about each takes hundreds of bytes and as many microseconds.
Ints = Annotated[list[TokenId], Field(fail_fast=True), BeforeValidator(whole_items)]
# `SamplingParams` refuses words of spaces, in better words than pydantic's.
Word = Annotated[str, WithJsonSchema({"type": "string", "minLength": 1, "pattern": r"\S"})]
Words = Annotated[list[Word], Field(fail_fast=True)]
Message = Annotated[dict[str, Any], WithJsonSchema(message_schema())]
Messages = Annotated[list[Message], Field(fail_fast=True)]
MediaIo = Annotated[dict[str, Any] | None, AfterValidator(_media_io), WithJsonSchema(media_io_schema())]
Biases = Annotated[
    dict[str, float] | None,
    BeforeValidator(_biases),
    Field(json_schema_extra={"propertyNames": {"pattern": f"^{TOKEN_ID.pattern}$"}}),
]
