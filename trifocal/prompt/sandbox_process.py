"""The program that renders chat templates, in a process of its own: started by `Sandbox`, run as a script.

A line of JSON in asks for a rendering, a line of JSON out answers it; it ends when its input ends. Jinja's sandbox
keeps a template from the interpreter's internals, but not from running for ever or from asking for all memory, and some
of that happens within one call that nothing in Python can interrupt (`9 ** 9 ** 9`). So the kernel keeps the limits:
timers whose signals end the process, and a limit on its address space.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

_MAX_MEMORY = 1 << 30  # bytes of address space; a fresh process takes less than a tenth
_PATIENCE = 20  # how much longer than its computing an answer may take by the clock


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks an assistant's words, for training; its body is rendered."""

    tags = {"generation"}  # noqa: RUF012  # as Jinja declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return the nodes of the block's body."""
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


def _answer(line: bytes) -> dict[str, Any]:
    """`{"text": …}`, or `{"error": kind, "message": …}` with kind syntax, too_long, memory or refused."""
    try:
        asked = json.loads(line)
        _set_timers(asked["max_seconds"])
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


def _set_timers(max_seconds: float) -> None:
    # Time of computing, so that a busy machine stops nobody innocent; the clock is for what only waits.
    signal.setitimer(signal.ITIMER_PROF, max_seconds)
    signal.setitimer(signal.ITIMER_REAL, max_seconds * _PATIENCE)


def main(max_seconds: float) -> None:
    """Answer until the input ends; an answer that takes more than `max_seconds` of computing, or what it was asked to
    take at most, ends the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ^C in a terminal reaches every process; the server decides
    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_MEMORY, _MAX_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin.buffer:
        _set_timers(max_seconds)
        answer = json.dumps(_answer(line), ensure_ascii=False).encode("utf-8", "surrogatepass")
        _set_timers(0)
        sys.stdout.buffer.write(answer + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(float(sys.argv[1]))
