"""Judges the fields of a request that nothing here acts on: refused, or ignored and told (`fields.py` has the tables).

Looked into are the body, `stream_options`, messages, their parts and the objects with a part's URL. What is the
client's or the model's own is not: JSON schemas, arguments of tools, metadata, chat_template_kwargs, vllm_xargs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel

from trifocal.errors import RequestError
from trifocal.log import get_logger
from trifocal.multimodal.message_fields import MESSAGE, PARTS, SOURCE, Scope, source_field
from trifocal.multimodal.messages import type_of
from trifocal.server.fields import BODY, COMPANIONS, STREAM_OPTIONS

logger = get_logger(__name__)

HEADER = "x-ignored-fields"
EVENT_FIELD = "ignored_fields"
MAX_HEADER_BYTES = 1024
_MAX_TOLD = 20  # fields of one request that nobody knows and that are told by name
_MORE = "..."  # stands for the others
_ALIKE = 0.7  # of 1: typing errors are above it, other words below
_MAX_NAME = 64  # characters of a name that are told
_ODD = re.compile(r"[^\w.\[\]:/$*+@#!~-]", re.ASCII)  # a client's name must not look like a second one, or break a line


@dataclass(frozen=True, slots=True)
class Ignored:
    """A field without effect; `path` is its place, `nearest` the known name that looks like it if nobody knows it."""

    path: str
    is_known: bool = True
    nearest: str | None = None

    def __str__(self) -> str:
        name = _ODD.sub(lambda odd: _escape(ord(odd[0])), self.path) or '""'
        return name if self.nearest is None else f"{name} (did you mean {self.nearest}?)"


def _escape(code: int) -> str:
    return f"\\x{code:02x}" if code < 1 << 8 else f"\\u{code:04x}" if code < 1 << 16 else f"\\U{code:08x}"


def extras_schema() -> dict[str, dict[str, Any]]:
    """JSON Schema of the fields of `BODY`: what they may hold without being refused."""
    return {
        **{name: {"description": f"has no effect: {why}"} for name, why in BODY.hints.items()},
        **{name: refused.schema() for name, refused in BODY.refused.items()},
    }


def declared(body: BaseModel, name: str) -> Any:
    """The field `name` of `body`; None if its model has no such field, though the client may have sent one.

    Such extras are attributes of a model as well, but nobody has checked their types.
    """
    return getattr(body, name) if name in type(body).model_fields else None


def judge(
    body: BaseModel,
    without_effect: Iterable[str] = (),
    *,
    of_others: Iterable[str] = (),
    is_strict: bool = False,
) -> tuple[Ignored, ...]:
    """What of `body` is ignored, beside the known fields `without_effect`; names that nobody knows go to the log.

    Names `of_others` are hints: fields of other routes that cannot change this one's answer.
    Raises `RequestError` for a field that would change the answer; if `is_strict`, for one that nobody knows.
    """
    found = _Found(is_strict)
    for path in without_effect:
        found.hint(path)
    hints = {**BODY.hints, **dict.fromkeys(of_others, "of other routes")}
    known = Scope(frozenset(type(body).model_fields), hints, BODY.refused)
    extras = body.model_extra or {}
    _judge_body(extras, known, declared(body, "n"), found)
    options = declared(body, "stream_options")
    if options is not None:
        scope = Scope(frozenset(type(options).model_fields), STREAM_OPTIONS.hints)
        _judge_object(options.model_extra or {}, scope, "stream_options", "stream_options", found)
    for index, message in enumerate(declared(body, "messages") or ()):
        if isinstance(message, Mapping):  # else the parser says what is wrong; so it does with parts
            _judge_message(message, index, found)
    ignored = found.all()
    unknown = [field for field in ignored if not field.is_known]
    if unknown:
        logger.warning("unknown fields were ignored: %s", text_of(unknown))
    return ignored


def text_of(ignored: Iterable[Ignored]) -> str:
    """The value of the header: names between commas, ASCII, and no more than the header may have."""
    entries = [str(field) for field in ignored]
    text = ", ".join(entries)
    for num_told in range(len(entries) - 1, -1, -1):
        if len(text) <= MAX_HEADER_BYTES:
            break
        text = ", ".join([*entries[:num_told], _MORE])
    return text


def event_of(ignored: Iterable[Ignored]) -> dict[str, Any]:
    """What the first event of a stream has beside its own fields: nothing, or the list of ignored ones."""
    fields = [{"field": field.path, "nearest": field.nearest} for field in ignored]
    return {EVENT_FIELD: fields} if fields else {}


class _Found:
    """Ignored fields, each place told once: `messages[].name` stands for all messages."""

    def __init__(self, is_strict: bool) -> None:
        self._is_strict = is_strict
        self._fields: dict[str, Ignored] = {}
        self._num_unknown = 0

    def all(self) -> tuple[Ignored, ...]:
        """What was found; those that nobody knows first, they are most likely mistakes."""
        return tuple(sorted(self._fields.values(), key=lambda field: field.is_known))

    def hint(self, path: str) -> None:
        """A field that is known and changes nothing."""
        self._fields.setdefault(path, Ignored(path))

    def unknown(self, name: str, path: str, where: str, scope: Scope) -> None:
        """A field that nobody knows. `where` is its place for an error message."""
        if path in self._fields:
            return
        if self._num_unknown == _MAX_TOLD:
            self._fields.setdefault(_MORE, Ignored(_MORE, is_known=False))
            return
        self._num_unknown += 1
        near = get_close_matches(name[:_MAX_NAME].lower(), scope.names, n=1, cutoff=_ALIKE)
        field = self._fields[path] = Ignored(path, is_known=False, nearest=near[0] if near else None)
        if self._is_strict:
            raise RequestError(
                f"unknown field {field} (--strict-request-fields)", param=where, code="unknown_parameter"
            )


def _judge_body(extras: Mapping[str, Any], scope: Scope, n: int | None, found: _Found) -> None:
    for name, companion in COMPANIONS.items():
        if extras.get(name) and extras.get(companion) == "none":
            found.hint(name)
            extras = {each: value for each, value in extras.items() if each != name}
    if extras.get("best_of") == (n or 1):
        extras = {name: value for name, value in extras.items() if name != "best_of"}
    _judge_object(extras, scope, "", "", found)


def _judge_message(message: Mapping[str, Any], index: int, found: _Found) -> None:
    """Places are put together only where there is something to tell: there may be thousands of messages."""
    if not message.keys() <= MESSAGE.known:
        _judge_object(message, MESSAGE, "messages[]", f"messages[{index}]", found)
    content = message.get("content")
    for number, part in enumerate(content if isinstance(content, list) else ()):
        kind = type_of(part) if isinstance(part, Mapping) else None
        if not isinstance(kind, str) or kind not in PARTS:
            continue
        name = source_field(kind)
        inside = part.get(name) if name is not None else None
        if not part.keys() <= PARTS[kind].known or isinstance(inside, Mapping):
            path, where = "messages[].content[]", f"messages[{index}].content[{number}]"
            _judge_object(part, PARTS[kind], path, where, found)
            if isinstance(inside, Mapping):
                _judge_object(inside, SOURCE, f"{path}.{name}", f"{where}.{name}", found)


def _judge_object(fields: Mapping[str, Any], scope: Scope, path: str, where: str, found: _Found) -> None:
    """`path` is the place of the object as it is told, `where` with the numbers of messages and parts."""
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
