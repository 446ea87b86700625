"""Fields that nothing here acts on, refused or ignored: how they are found in messages, named and told."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from trifocal.errors import RequestError
from trifocal.log import get_logger
from trifocal.prompt.message_fields import MESSAGE, PARTS, SOURCE, Scope, source_field
from trifocal.prompt.parts import type_of

logger = get_logger(__name__)

MORE = "..."  # stands for the others
MAX_TEXT_BYTES = 1024
_MAX_TOLD = 20  # unknown fields of one request that are told by name
_ALIKE = 0.7  # of 1: typing errors are above it, other words below
_MAX_NAME = 64  # characters of a name that are told
_ODD = re.compile(r"[^\w.\[\]:/$*+@#!~-]", re.ASCII)  # a client's name must not look like a second one, or break a line


@dataclass(frozen=True, slots=True)
class Ignored:
    """A field without effect; `path` is its place, `nearest` the known name most like an unknown one."""

    path: str
    is_known: bool = True
    nearest: str | None = None

    def __str__(self) -> str:
        name = _ODD.sub(lambda odd: _escape(ord(odd[0])), self.path) or '""'
        return name if self.nearest is None else f"{name} (did you mean {self.nearest}?)"


def _escape(code: int) -> str:
    return f"\\x{code:02x}" if code < 1 << 8 else f"\\u{code:04x}" if code < 1 << 16 else f"\\U{code:08x}"


def text_of(ignored: Iterable[Ignored]) -> str:
    """Names between commas, in ASCII and at most `MAX_TEXT_BYTES`, for a header or the log."""
    entries = [str(field) for field in ignored]
    text = ", ".join(entries)
    for num_told in range(len(entries) - 1, -1, -1):
        if len(text) <= MAX_TEXT_BYTES:
            break
        text = ", ".join([*entries[:num_told], MORE])
    return text


class IgnoredFields:
    """Ignored fields, each place told once: `messages[].name` stands for all messages."""

    def __init__(self, *, is_strict: bool = False) -> None:
        self._is_strict = is_strict
        self._fields: dict[str, Ignored] = {}
        self._num_unknown = 0

    def all(self) -> tuple[Ignored, ...]:
        """What was found; unknown fields first, as they are most likely mistakes."""
        return tuple(sorted(self._fields.values(), key=lambda field: field.is_known))

    def warn(self) -> None:
        """Tell the log of unknown fields."""
        unknown = [field for field in self.all() if not field.is_known]
        if unknown:
            logger.warning("unknown fields were ignored: %s", text_of(unknown))

    def hint(self, path: str) -> None:
        """A field that is known and changes nothing."""
        self._fields.setdefault(path, Ignored(path))

    def unknown(self, name: str, path: str, where: str, scope: Scope) -> None:
        """An unknown field. `where` is its place for an error message."""
        if path in self._fields:
            return
        if self._num_unknown == _MAX_TOLD:
            self._fields.setdefault(MORE, Ignored(MORE, is_known=False))
            return
        self._num_unknown += 1
        near = get_close_matches(name[:_MAX_NAME].lower(), scope.names, n=1, cutoff=_ALIKE)
        field = self._fields[path] = Ignored(path, is_known=False, nearest=near[0] if near else None)
        if self._is_strict:
            raise RequestError(
                f"unknown field {field} (--strict-request-fields)", param=where, code="unknown_parameter"
            )


def judge_messages(messages: Iterable[Any], found: IgnoredFields) -> None:
    """Add what of these messages is ignored. Raises `RequestError` for a field that would change the answer."""
    for index, message in enumerate(messages):
        if isinstance(message, Mapping):  # else the parser says what is wrong; so it does with parts
            _judge_message(message, index, found)


def _judge_message(message: Mapping[str, Any], index: int, found: IgnoredFields) -> None:
    """Places are put together only where there is something to tell: there may be thousands of messages."""
    if not message.keys() <= MESSAGE.known:
        judge_object(message, MESSAGE, "messages[]", f"messages[{index}]", found)
    content = message.get("content")
    for number, part in enumerate(content if isinstance(content, list) else ()):
        kind = type_of(part) if isinstance(part, Mapping) else None
        if not isinstance(kind, str) or kind not in PARTS:
            continue
        name = source_field(kind)
        inside = part.get(name) if name is not None else None
        if not part.keys() <= PARTS[kind].known or isinstance(inside, Mapping):
            path, where = "messages[].content[]", f"messages[{index}].content[{number}]"
            judge_object(part, PARTS[kind], path, where, found)
            if isinstance(inside, Mapping):
                judge_object(inside, SOURCE, f"{path}.{name}", f"{where}.{name}", found)


def judge_object(fields: Mapping[str, Any], scope: Scope, path: str, where: str, found: IgnoredFields) -> None:
    """Add what of an object is ignored. Raises `RequestError` for a field that would change the answer.

    `path` is the place of the object as it is told, `where` the same with the numbers of messages and parts.
    """
    for name in [name for name in fields if name not in scope.known]:
        value, short = fields[name], str(name)[:_MAX_NAME]
        inner, place = (f"{path}.{short}", f"{where}.{short}") if path else (short, short)
        refused = scope.refused.get(name)
        if name in scope.hints:
            if value is not None:
                found.hint(inner)
        elif refused is None:
            found.unknown(short, inner, place, scope)
        elif not refused.allows(value):
            message = f"not available yet: {place} ({refused.what}); leave it out"
            raise RequestError(message, param=place, code="unsupported_parameter")
