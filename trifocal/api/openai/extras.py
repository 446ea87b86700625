"""Judges the fields of a request that nothing here acts on: refused, or ignored and told (`fields.py` has the tables).

Looked into are the body, `stream_options`, messages, their parts and the objects with a part's URL. What is the
client's or the model's own is not: JSON schemas, arguments of tools, metadata, chat_template_kwargs, vllm_xargs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel

from trifocal.api.openai.fields import BODY, COMPANIONS, STREAM_OPTIONS
from trifocal.prompt.ignored_fields import Ignored, IgnoredFields, judge_messages, judge_object
from trifocal.prompt.message_fields import Scope, is_same

EVENT_FIELD = "ignored_fields"


def extras_schema() -> dict[str, dict[str, Any]]:
    """JSON Schema of the fields of `BODY`: what they may hold without being refused."""
    return {
        **{name: {"description": f"has no effect: {why}"} for name, why in BODY.hints.items()},
        **{name: refused.schema() for name, refused in BODY.refused.items()},
        "best_of": {
            "description": "as many as n",
            "anyOf": [BODY.refused["best_of"].schema(), {"type": "integer", "minimum": 1}],
        },
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
    """What of `body` is ignored, beside the known fields `without_effect`; unknown names go to the log.

    Names `of_others` are hints: fields of other routes that cannot change this one's answer.
    Raises `RequestError` for a field that would change the answer; if `is_strict`, for an unknown one.
    """
    found = IgnoredFields(is_strict=is_strict)
    for path in without_effect:
        found.hint(path)
    hints = {**BODY.hints, **dict.fromkeys(of_others, "it belongs to other routes")}
    known = Scope(frozenset(type(body).model_fields), hints, BODY.refused)
    extras = body.model_extra or {}
    _judge_body(extras, known, declared(body, "n"), found)
    options = declared(body, "stream_options")
    if options is not None:
        scope = Scope(frozenset(type(options).model_fields), STREAM_OPTIONS.hints)
        judge_object(options.model_extra or {}, scope, "stream_options", "stream_options", found)
    judge_messages(declared(body, "messages") or (), found)
    found.warn()
    return found.all()


def event_of(ignored: Iterable[Ignored]) -> dict[str, Any]:
    """What the first event of a stream has beside its own fields: nothing, or the list of ignored ones."""
    fields = [{"field": field.path, "nearest": field.nearest} for field in ignored]
    return {EVENT_FIELD: fields} if fields else {}


def _judge_body(extras: Mapping[str, Any], scope: Scope, n: int | None, found: IgnoredFields) -> None:
    for name, companion in COMPANIONS.items():
        if extras.get(name) and extras.get(companion) == "none":
            found.hint(name)
            extras = {each: value for each, value in extras.items() if each != name}
    if is_same(extras.get("best_of"), n or 1):
        extras = {name: value for name, value in extras.items() if name != "best_of"}
    judge_object(extras, scope, "", "", found)
