"""Messages as JSON Schema, made of the parser's own tables: the `messages` of the server's OpenAPI document."""

from __future__ import annotations

from typing import Any

from trifocal.multimodal.messages import MEDIA_TYPES, PASSED_ON, TEXT_TYPES, URL_FIELDS, field_of, text_field_of
from trifocal.multimodal.part_options import COUNT_SCHEMA, PART_OPTIONS, RATE_SCHEMA, Kind

Schema = dict[str, Any]
_STRING: Schema = {"type": "string"}
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
    message = _object({"role": _ROLE, "content": content, **optional}, ["role", "content"])
    answer = _object({"role": {"enum": ["assistant"]}, "content": _or_null(content), **optional}, ["role"])
    return {"title": "Message", "anyOf": [message, answer]}


def _part() -> Schema:
    texts = [
        _object({"type": {"enum": [kind]}, text_field_of(kind): _STRING}, ["type", text_field_of(kind)])
        for kind in TEXT_TYPES
    ]
    media = [_media_part(kind) for kind in MEDIA_TYPES]
    return {"title": "Part", "anyOf": [*texts, *media, _STRING]}


def _media_part(kind: str) -> Schema:
    name, modality = field_of(kind), MEDIA_TYPES[kind]
    options = {
        option: _or_null(_OPTION_KINDS[spec.kind])
        for option, spec in PART_OPTIONS.items()
        if modality in spec.modalities
    }
    url: Schema = {"anyOf": [_URL, {"type": "array", "items": _URL, "minItems": 1}]} if modality == "video" else _URL
    source: Schema = {"anyOf": [*url.get("anyOf", [url]), _object({"url": url, **options}, ["url"])]}
    return _object({"type": {"enum": [kind]}, name: source if name in URL_FIELDS else url, **options}, ["type", name])


def _tool_calls() -> Schema:
    arguments = {"anyOf": [{"type": "object"}, {"type": "string", "contentMediaType": "application/json"}]}
    function = _object({"name": _STRING, "arguments": arguments}, ["name"])
    return {"type": "array", "items": _object({"function": function}, ["function"])}


def _object(properties: Schema, required: list[str]) -> Schema:
    return {"type": "object", "properties": properties, "required": required}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}
