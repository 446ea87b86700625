"""The parts of a message's content: their types, where each has its text or its media."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trifocal.errors import RequestError
from trifocal.media.modalities import MODALITIES
from trifocal.tokenizer import valid_text
from trifocal.types import Modality

TEXT_TYPES = ("text", "input_text", "output_text", "refusal")
MEDIA_TYPES: Mapping[str, Modality] = {
    kind: modality for modality, info in MODALITIES.items() for kind in info.part_fields
}
URL_FIELDS = tuple(info.url_field for info in MODALITIES.values())
"""Fields with a URL or an object with one; other fields may hold objects offline."""
TYPELESS = ("text", *URL_FIELDS, *MODALITIES)
"""Parts need no type where they have such a field."""


def type_of(part: Mapping[str, Any]) -> Any:
    """The type that a part gives, else the one of `TYPELESS` whose field it has, as vLLM does; None if it has none."""
    return part.get("type") or next((name for name in TYPELESS if part.get(name) is not None), None)


def text_field_of(kind: str) -> str:
    """Where a text part of type `kind` has its text."""
    return "refusal" if kind == "refusal" else "text"


def field_of(kind: str) -> str:
    """Where a media part of type `kind` has its source."""
    return MODALITIES[MEDIA_TYPES[kind]].part_fields[kind]


def media_source(part: Mapping[str, Any], name: str, modality: Modality, where: str) -> Any:
    """What the field `name` of a media part names, a URL or (offline) an object. Raises `RequestError`."""
    source = part.get(name)
    if source is None:
        raise RequestError(f"{where}.{name} is missing", param=where)
    if name in URL_FIELDS:
        if isinstance(source, Mapping):
            source = source.get("url")
            name = f"{name}.url"
        if not _is_source(source, modality):
            forms = MODALITIES[modality].url_forms
            raise RequestError(f"{where}.{name} must be {forms}, got {_kind(source)}", param=where)
    if isinstance(source, list):
        return [valid_text(item) if isinstance(item, str) else item for item in source]
    return valid_text(source) if isinstance(source, str) else source


def _is_source(source: object, modality: Modality) -> bool:
    if isinstance(source, list):
        has_frames = MODALITIES[modality].frames is not None
        return has_frames and bool(source) and all(isinstance(item, str) and item for item in source)
    return isinstance(source, str) and bool(source)


def _kind(source: object) -> str:
    if isinstance(source, list) and source:
        wrong = next((item for item in source if not isinstance(item, str) or not item), None)
        return "a list" if wrong is None else f"a list with {_kind(wrong)} in it"
    return "an empty text" if source == "" else "an empty list" if source == [] else type(source).__name__
