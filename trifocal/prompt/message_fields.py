"""Fields of messages and their parts that nothing here acts on, in the classes of `Scope`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trifocal.prompt.message_parser import PASSED_ON
from trifocal.prompt.part_options import OF_A_PROMPT, PART_OPTIONS, REFUSED_OPTIONS, without_nulls
from trifocal.prompt.parts import MEDIA_TYPES, TEXT_TYPES, URL_FIELDS, field_of, text_field_of

EMPTY: tuple[Any, ...] = ([], {}, "")


@dataclass(frozen=True)
class Refused:
    """A field with a meaning that is not done here: `what` it asks for.

    Null, false, the `neutral` values and, if `is_empty_neutral`, what is empty ask for what happens anyway; so does an
    object with further members that are null.
    """

    what: str
    neutral: tuple[Any, ...] = ()
    is_empty_neutral: bool = True

    def allows(self, value: Any) -> bool:
        """Whether `value` asks for what happens anyway."""
        return value is None or value is False or any(is_same(without_nulls(value), each) for each in self._values)

    @property
    def _values(self) -> tuple[Any, ...]:
        return (*(EMPTY if self.is_empty_neutral else ()), *self.neutral)

    def schema(self) -> dict[str, Any]:
        """JSON Schema of what is allowed."""
        plain = [value for value in self._values if not isinstance(value, Mapping)]
        objects = [_with_nulls(value) for value in self._values if isinstance(value, Mapping)]
        description = f"not available ({self.what}); refused with any other value"
        return {"description": description, "anyOf": [{"enum": [None, False, *plain]}, *objects]}


def is_same(value: Any, other: Any) -> bool:
    """Whether two JSON values are equal: 1 is 1.0, but no number is true or false, which Python says of 1 and 0."""
    if isinstance(value, list) and isinstance(other, list):
        return len(value) == len(other) and all(map(is_same, value, other))
    if isinstance(value, Mapping) and isinstance(other, Mapping):
        return value.keys() == other.keys() and all(is_same(value[name], other[name]) for name in value)
    return isinstance(value, bool) is isinstance(other, bool) and bool(value == other)


def _with_nulls(value: Mapping[str, Any]) -> dict[str, Any]:
    members = {name: {"enum": [member]} for name, member in value.items()}
    return {
        "type": "object", "properties": members, "required": list(value), "additionalProperties": {"type": "null"},
    }  # fmt: skip


@dataclass(frozen=True)
class Scope:
    """One kind of object in a request: the fields that it may have, by class.

    `known` ones are acted on. A hint changes no answer here, so it is accepted; the table has the reason. A refused one
    would change the answer. Names in no table are unknown, the last class.
    """

    known: frozenset[str] = frozenset()
    hints: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, Refused] = field(default_factory=dict)

    @property
    def names(self) -> frozenset[str]:
        """All names that mean something to somebody."""
        return self.known | self.hints.keys() | self.refused.keys()


LABEL = "a label for the client's own use"
CACHE = "prompts are cached automatically"
TOOLS = "tool calls"
_OF_ANSWERS = "a field of answers, which the model does not see"

MESSAGE = Scope(
    known=frozenset({"role", "content", "tool_calls", *PASSED_ON}),
    hints={
        "id": LABEL,
        "annotations": _OF_ANSWERS,
        "parsed": _OF_ANSWERS,
        "refusal": _OF_ANSWERS,
        "cache_control": CACHE,
    },
    refused={
        "audio": Refused("audio"),
        "function_call": Refused("the old form of tool_calls; use those"),
        "tools": Refused(TOOLS),
    },
)

# Of parts and of the objects in them, where clients write them in either place.
_MEDIA_HINTS = {
    "detail": "the model's processor chooses the size of pictures",
    "format": "formats are recognised by the bytes",
    "uuid": "media are identified by their content",
}
ITEM_OPTIONS = frozenset({*PART_OPTIONS, *OF_A_PROMPT})
"""Options of a media part: `part_options` checks them, and says where one does not belong."""
_MEDIA_OPTIONS = {name: Refused(why) for name, why in REFUSED_OPTIONS.items()}
_PART_HINTS = {"cache_control": CACHE, "prompt_cache_breakpoint": CACHE, "annotations": _OF_ANSWERS}

SOURCE = Scope(known=frozenset({"url", *ITEM_OPTIONS}), hints=_MEDIA_HINTS, refused=_MEDIA_OPTIONS)
"""The object of a media part that holds its URL."""

_CONTENT = frozenset({*map(text_field_of, TEXT_TYPES), *map(field_of, MEDIA_TYPES)})


def _part_scope(name: str, *, is_media: bool) -> Scope:
    others = {
        other: Refused(f"a part holds one of these fields; put {other} into a part of its own")
        for other in _CONTENT - {name}
    }
    hints = _PART_HINTS | (_MEDIA_HINTS if is_media else {})
    known = frozenset({"type", name, *(ITEM_OPTIONS if is_media else ())})
    return Scope(known, hints, {**others, **(_MEDIA_OPTIONS if is_media else {})})


PARTS: Mapping[str, Scope] = {
    **{kind: _part_scope(text_field_of(kind), is_media=False) for kind in TEXT_TYPES},
    **{kind: _part_scope(field_of(kind), is_media=True) for kind in MEDIA_TYPES},
}
"""Parts of a message's content, by type."""


def source_field(kind: str) -> str | None:
    """Where a part of type `kind` may have an object with a URL."""
    name = field_of(kind) if kind in MEDIA_TYPES else ""
    return name if name in URL_FIELDS else None
