"""Chat templates: Jinja in a sandbox, with the environment that Hugging Face gives them."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from trifocal.types import ConfigError, RequestError

_PROBE = "probe0probe"
_RESERVED = frozenset({"messages", "tokenize", "chat_template", "add_generation_prompt", "continue_final_message"})


class RenderedTooLongError(Exception):
    """A rendering was stopped because it passed its limit of characters."""


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
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def read_chat_template(text_or_path: str) -> str:
    """`--chat-template`: the content of a file, or the template itself. Raises `ConfigError`."""
    try:
        if Path(text_or_path).expanduser().is_file():
            return Path(text_or_path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        if not _looks_like_template(text_or_path):  # a long template is no valid file name
            raise ConfigError(f"--chat-template {text_or_path!r} cannot be read: {error}") from None
    if not _looks_like_template(text_or_path):
        raise ConfigError(f"--chat-template {text_or_path!r} is neither a file nor a Jinja template")
    return text_or_path


def _looks_like_template(text: str) -> bool:
    return any(mark in text for mark in ("{{", "{%", "\n"))


class ChatTemplate:
    """A compiled template. `takes_parts`: it renders a list of content parts; `takes_string`: it renders a string.

    `variables` (`bos_token`, …) are given to every rendering.
    """

    def __init__(self, source: str, variables: dict[str, str]) -> None:
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise ConfigError(f"the chat template does not compile: {error}") from None
        self._variables = variables
        self.takes_string = self._renders(_PROBE)
        self.takes_parts = self._renders([{"type": "text", "text": _PROBE}])

    def render(
        self, messages: list[dict[str, Any]], *, add_generation_prompt: bool, max_chars: int, extra: dict[str, Any]
    ) -> str:
        """The prompt's text. Raises `RequestError` where the template refuses, `RenderedTooLongError` past `max_chars`.

        `extra` are chat_template_kwargs; they cannot replace what the request says elsewhere.
        """
        for name in extra:
            if name in _RESERVED:
                raise RequestError(f"chat_template_kwargs cannot set {name!r}", param="chat_template_kwargs")
        context = {"tools": None, "documents": None, **self._variables, **extra}
        pieces, length = [], 0
        try:
            for piece in self._template.generate(
                messages=messages, add_generation_prompt=add_generation_prompt, **context
            ):
                pieces.append(piece)
                length += len(piece)
                if length > max_chars:
                    raise RenderedTooLongError
        except RenderedTooLongError:
            raise
        except Exception as error:  # a template is a program: with odd messages it may fail in any way
            raise RequestError(f"the chat template refused the messages: {error}", param="messages") from None
        return "".join(pieces)

    def _renders(self, content: Any) -> bool:
        """Whether a message with `content` comes out as its text, neither lost nor as Python's print of a list."""
        try:
            text = self.render(
                [{"role": "user", "content": content}], add_generation_prompt=True, max_chars=1 << 20, extra={}
            )
        except RequestError:
            return False
        return _PROBE in text and "'text'" not in text and '"text"' not in text
