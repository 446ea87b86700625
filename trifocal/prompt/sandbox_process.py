"""The program that renders chat templates: `python -m trifocal.prompt.sandbox_process MEMORY_BYTES`, for `Sandbox`.

A message of JSON asks for a rendering, another answers it. Jinja's sandbox keeps a template from the interpreter's
internals, but not from running for ever or from asking for all memory, and some of that happens within one call that
nothing in Python can interrupt (`9 ** 9 ** 9`). So the kernel keeps the limits (`helpers/process.py`).
"""

from __future__ import annotations

import json
import sys
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from trifocal.helpers.process import begin, end_of_job, limit_seconds, read_message, write_message

_READING_S = 3.0  # until the limits of a job are read


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks an assistant's words, for training; its body is rendered."""

    tags = {"generation"}  # noqa: RUF012  # as Jinja declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _tojson(value: Any, indent: int | None = None, **options: Any) -> str:
    # Jinja's own filter escapes HTML, which a model must not see.
    return json.dumps(value, ensure_ascii=options.pop("ensure_ascii", False), indent=indent, **options)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _environment() -> ImmutableSandboxedEnvironment:
    """What Hugging Face gives to chat templates."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


@lru_cache(maxsize=16)
def _compile(source: str) -> jinja2.Template:
    return _environment().from_string(source)


def _answer(message: bytes) -> dict[str, Any]:
    """`{"text": …}`, or `{"error": kind, "message": …}` with kind syntax, too_long, memory or refused."""
    try:
        asked = json.loads(message)
        limit_seconds(asked["wall_s"], asked["cpu_s"])
        try:
            template = _compile(asked["source"])
        except jinja2.TemplateError as error:
            return {"error": "syntax", "message": str(error)}
        pieces, length = [], 0
        for piece in template.generate(asked["context"]):
            pieces.append(piece)
            length += len(piece)
            if length > asked["max_chars"]:
                return {"error": "too_long", "message": ""}
        return {"text": "".join(pieces)}
    except MemoryError:
        return {"error": "memory", "message": ""}
    except Exception as error:  # a template is a program: with odd messages it may fail in any way
        return {"error": "refused", "message": str(error)}


def main() -> None:
    """Answer until the input ends."""
    jobs, answers = begin(int(sys.argv[1]))
    while (message := read_message(jobs)) is not None:
        limit_seconds(_READING_S, _READING_S)
        answer = json.dumps(_answer(message), ensure_ascii=False).encode("utf-8", "surrogatepass")
        end_of_job()
        write_message(answers, answer)


if __name__ == "__main__":
    main()
