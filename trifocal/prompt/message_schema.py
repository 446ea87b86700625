"""Messages as JSON Schema, made of the parser's own tables: the `messages` of the server's OpenAPI document."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from trifocal.media.modalities import MODALITIES
from trifocal.prompt.message_fields import MESSAGE, PARTS, SOURCE, Scope
from trifocal.prompt.message_parser import PASSED_ON
from trifocal.prompt.part_options import COUNT_SCHEMA, OF_A_PROMPT, PART_OPTIONS, RATE_SCHEMA, Kind
from trifocal.prompt.parts import (
    MEDIA_TYPES,
    TEXT_TYPES,
    TYPELESS,
    URL_FIELDS,
    field_of,
    text_field_of,
)

Schema = dict[str, Any]
_STRING: Schema = {"type": "string"}
_NULL: Schema = {"type": "null"}
_URL: Schema = {"type": "string", "minLength": 1}
_ROLE: Schema = {"type": "string", "minLength": 1, "description": "any that the chat template knows"}
_OPTION_KINDS: dict[Kind, Schema] = {
    "count": COUNT_SCHEMA,
    "rate": RATE_SCHEMA,
    "flag": {"type": "boolean"},
}


def message_schema() -> Schema:
    """Schema of one message; what it allows `MessageParser` takes, but for media that cannot be had."""
    content = {"anyOf": [_STRING, {"type": "array", "items": _part()}]}
    optional: Schema = {name: _or_null(_STRING) for name in PASSED_ON}
    optional["tool_calls"] = _or_null(_tool_calls())
    optional |= _refused(MESSAGE)
    message = _object({"role": _ROLE, "content": content, **optional}, ["role", "content"])
    answer = _object({"role": {"enum": ["assistant"]}, "content": _or_null(content), **optional}, ["role"])
    return {"title": "Message", "anyOf": [message, answer]}


def _part() -> Schema:
    typed = {kind: _text_part(kind) for kind in TEXT_TYPES} | {kind: _media_part(kind) for kind in MEDIA_TYPES}
    typeless = [_without_type(typed[kind], TYPELESS[:index]) for index, kind in enumerate(TYPELESS)]
    return {"title": "Part", "anyOf": [*typed.values(), *typeless, _STRING]}


def _text_part(kind: str) -> Schema:
    name = text_field_of(kind)
    return _object({**_refused(PARTS[kind]), "type": {"enum": [kind]}, name: _STRING}, ["type", name])


def _media_part(kind: str) -> Schema:
    name, modality = field_of(kind), MEDIA_TYPES[kind]
    options = {
        **{option: _or_null(_OPTION_KINDS[spec.kind]) for option, spec in PART_OPTIONS.items()},
        **{option: _NULL for option, spec in PART_OPTIONS.items() if modality not in spec.modalities},
        **dict.fromkeys(OF_A_PROMPT, _NULL),
    }
    frames: Schema = {"type": "array", "items": _URL, "minItems": 1}
    url: Schema = {"anyOf": [_URL, frames]} if MODALITIES[modality].frames else _URL
    inside = _object({**_refused(SOURCE), "url": url, **options}, ["url"])
    source: Schema = {"anyOf": [*url.get("anyOf", [url]), inside]} if name in URL_FIELDS else url
    return _object({**_refused(PARTS[kind]), "type": {"enum": [kind]}, name: source, **options}, ["type", name])


def _without_type(part: Schema, absent: Iterable[str]) -> Schema:
    """`part` told by its field alone, where it has none of the fields `absent`, which would be asked first."""
    nothing: Schema = {"enum": [None, False, "", 0, [], {}]}
    fields = {**part["properties"], "type": nothing, **dict.fromkeys(absent, _NULL)}
    return _object(fields, [name for name in part["required"] if name != "type"])


def _refused(scope: Scope) -> Schema:
    return {name: refused.schema() for name, refused in scope.refused.items()}


def _tool_calls() -> Schema:
    arguments = {"anyOf": [{"type": "object"}, {"type": "string", "contentMediaType": "application/json"}]}
    function = _object({"name": _STRING, "arguments": _or_null(arguments)}, ["name"])
    labels = {name: _or_null(_STRING) for name in ("id", "type")}
    return {"type": "array", "items": _object({"function": function, **labels}, ["function"])}


def _object(properties: Schema, required: list[str]) -> Schema:
    return {"type": "object", "properties": properties, "required": required}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, _NULL]}
