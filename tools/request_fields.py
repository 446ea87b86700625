"""Writes docs/request-fields.md from the code: `python -m tools.request_fields`. A test compares the two."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from trifocal.api.openai.fields import BODY, COMPANIONS, STREAM_OPTIONS
from trifocal.api.openai.schemas import ChatBody, CompletionBody, DetokenizeBody, StreamOptions, TokenizeBody
from trifocal.prompt.message_fields import ITEM_OPTIONS, MESSAGE, PARTS, SOURCE, Refused, Scope

PAGE = Path(__file__).parents[1] / "docs" / "request-fields.md"
ROUTES = {
    "/v1/chat/completions": ChatBody,
    "/v1/completions": CompletionBody,
    "/tokenize": TokenizeBody,
    "/detokenize": DetokenizeBody,
}
OPENING = """# Request fields

This page is written by `python -m tools.request_fields` from the code; edit `trifocal/api/openai/fields.py` and
`trifocal/prompt/message_fields.py`.

A body is JSON, sent with `Content-Type: application/json` (`curl -d` alone says a form: that is a 415). `null` means
the default everywhere. An integer may be written `32.0`, a boolean of the body itself as 0 or 1. `model` may be left
out or empty: the first served name; a slash at its end is no part of it.

No field is ignored in silence. One that is not acted on is of one of three classes:

| class | what happens |
|---|---|
| it would change the answer, and is not done here | 400, `unsupported_parameter`; not for values that ask for no more \
than what happens anyway |
| a hint or a label: no answer depends on it | accepted, and named as below unless it is `null` |
| unknown: a mistake, or a field of another API | the same, with the known name that looks most like it, and a \
warning in the log; with \
`--strict-request-fields` a 400, `unknown_parameter` |

Ignored fields are named in the response header `x-ignored-fields`, in the first event of a stream as
`"ignored_fields": [{"field": "temperatur", "nearest": "temperature"}]`, and in the request's line of the access log.
The header is `temperatur (did you mean temperature?), user`: unknown names come first, characters other than ASCII
letters, digits and a few marks are written as `\\xe4` or `\\u6f22`, and `...` stands for what is beyond 20 names or
1 KiB. Pages of other origins may read it.

Objects in the body count too: `stream_options`, messages, their parts, and the object with a part's URL. `messages[]`
stands for each of them. Not looked into are JSON schemas, arguments of tools, `metadata`, `chat_template_kwargs` and
`vllm_xargs`.
"""


def page() -> str:
    """The whole page."""
    sections = [
        OPENING,
        "## Fields that are acted on\n\n" + _known(),
        "## Refused\n\nBeside the values listed, null and false are accepted, and what is empty unless it says "
        "otherwise.\n\n" + _refused(BODY.refused),
        _companions() + "\n",
        "## Hints and labels\n\nOn `/tokenize` and `/detokenize` the fields of generation are hints, too.\n\n"
        + _hints(BODY.hints),
        "### In `stream_options`\n\n" + _acted_on(StreamOptions.model_fields) + _hints(STREAM_OPTIONS.hints),
        "### In messages\n\n" + _acted_on(MESSAGE.known) + _hints(MESSAGE.hints) + "\n" + _refused(MESSAGE.refused),
        "### In parts of a message\n\n" + _parts(),
        "### In the object with a part's URL\n\n" + _scope(SOURCE),
    ]
    return "\n".join(sections)


def _known() -> str:
    names = dict.fromkeys(name for body in ROUTES.values() for name in body.model_fields)
    rows = [(f"`{name}`", *("yes" if name in body.model_fields else "" for body in ROUTES.values())) for name in names]
    return _table(["field", *(f"`{route}`" for route in ROUTES)], rows)


def _parts() -> str:
    shown: dict[str, list[str]] = {}
    for kind, scope in PARTS.items():
        shown.setdefault(_acted_on(scope.known), []).append(f"`{kind}`")
    text = "".join(f"- {', '.join(kinds)}: {known[0].lower()}{known[1:].strip()}\n" for known, kinds in shown.items())
    common = Scope(hints={}, refused={})
    for scope in PARTS.values():
        refused = {name: rule for name, rule in scope.refused.items() if name not in _contents()}
        common = Scope(hints={**common.hints, **scope.hints}, refused={**common.refused, **refused})
    return f"{text}\nA part with the content of two types is refused.\n\n{_scope(common)}"


def _contents() -> set[str]:
    return {name for scope in PARTS.values() for name in scope.known}


def _companions() -> str:
    pairs = " or ".join(f"`{name}` with `{companion}: none`" for name, companion in COMPANIONS.items())
    return f"{pairs} is a hint; so is `best_of` where it is `n`."


def _scope(scope: Scope) -> str:
    known = _acted_on(scope.known) if scope.known else ""
    return f"{known}{_hints(scope.hints)}\n{_refused(scope.refused)}"


def _acted_on(names: Iterable[str]) -> str:
    told = [f"`{name}`" for name in sorted(set(names) - ITEM_OPTIONS)]
    if not ITEM_OPTIONS.isdisjoint(names):
        told.append("and [the options of its item](media.md)")
    return f"Acted on: {', '.join(told)}.\n\n"


def _hints(hints: Mapping[str, str]) -> str:
    return _table(["hint", "why it changes nothing"], _grouped({name: (why,) for name, why in hints.items()}))


def _refused(rules: Mapping[str, Refused]) -> str:
    rows = _grouped({name: (rule.what, _values(rule)) for name, rule in rules.items()})
    return _table(["refused", "what it asks for", "values that are accepted"], rows)


def _grouped(told: Mapping[str, tuple[str, ...]]) -> list[tuple[str, ...]]:
    """A row for all names of which the same is told."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, cells in told.items():
        groups.setdefault(cells, []).append(f"`{name}`")
    return [(", ".join(names), *cells) for cells, names in groups.items()]


def _values(rule: Refused) -> str:
    values = [f"`{json.dumps(value)}`" for value in rule.neutral]
    return ", ".join(values if rule.is_empty_neutral else [*values, "not what is empty"])


def _table(head: list[str], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n".replace("|  |", "| |").replace("|  |", "| |") for cells in lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
