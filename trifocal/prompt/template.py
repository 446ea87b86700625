"""Chat templates: what the checkpoint, or `--chat-template`, makes of messages."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from trifocal.errors import ArgumentError, ConfigError, RequestError
from trifocal.prompt.sandbox import SANDBOX, RenderedTooLongError, RenderTimeoutError, Sandbox

__all__ = ["ChatTemplate", "RenderedTooLongError", "read_chat_template"]

_PROBE = "probe0probe"
_RESERVED = frozenset({"messages", "tokenize", "chat_template", "add_generation_prompt", "continue_final_message"})


def read_chat_template(text_or_path: str | PathLike[str]) -> str:
    """`--chat-template`: the content of a file, or the template itself. Raises `ConfigError`."""
    if not isinstance(text_or_path, str | PathLike):
        raise ArgumentError("{chat_template} must be a file or a Jinja template, got {!r:.80}", text_or_path)
    text_or_path = fspath(text_or_path)
    try:
        if Path(text_or_path).expanduser().is_file():
            return Path(text_or_path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        if not _looks_like_template(text_or_path):  # a long template is no valid file name
            raise ArgumentError("{chat_template} {!r} cannot be read: {}", text_or_path, error) from None
    if not _looks_like_template(text_or_path):
        raise ArgumentError("{chat_template} {!r} is neither a file nor a Jinja template", text_or_path)
    return text_or_path


def _looks_like_template(text: str) -> bool:
    return any(mark in text for mark in ("{{", "{%", "\n"))


def check_variables(extra: Mapping[str, Any]) -> None:
    """Raise `RequestError` for chat_template_kwargs that would replace what a request says elsewhere."""
    for name in extra:
        if name in _RESERVED:
            raise RequestError(f"chat_template_kwargs cannot set {name!r}", param="chat_template_kwargs")


class ChatTemplate:
    """A template. `takes_parts`: it renders a list of content parts; `takes_string`: it renders a string.

    Which, is found out by rendering both; `formatted` says otherwise.

    `variables` (`bos_token`, …) are given to every rendering. Raises `ConfigError` for a template that does not compile
    or never ends.
    """

    def __init__(self, source: str, variables: dict[str, str], sandbox: Sandbox = SANDBOX) -> None:
        self._source = source
        self._variables = variables
        self._sandbox = sandbox
        self.takes_string = self._renders(_PROBE)
        self.takes_parts = self._renders([{"type": "text", "text": _PROBE}])

    def formatted(self, content_format: str) -> ChatTemplate:
        """This template for contents that are texts ("string"), lists of parts ("openai"), or what it takes ("auto").

        Raises `RequestError` for another word.
        """
        if content_format == "auto":
            return self
        if content_format not in ("string", "openai"):
            raise RequestError(
                f"chat_template_content_format must be auto, string or openai, got {content_format!r}",
                param="chat_template_content_format",
            )
        template = copy(self)
        template.takes_string, template.takes_parts = content_format == "string", content_format == "openai"
        return template

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        add_generation_prompt: bool,
        max_chars: int,
        extra: dict[str, Any],
        max_seconds: float | None = None,
    ) -> str:
        """The prompt's text. Raises `RequestError` where the template refuses, `RenderedTooLongError` past `max_chars`.

        `extra` are chat_template_kwargs; they cannot replace what the request says elsewhere. `max_seconds` of
        computing, if these are less than the sandbox's: `RenderTimeoutError` past them.
        """
        check_variables(extra)
        context = {"tools": None, "documents": None, **self._variables, **extra}
        context |= {"messages": messages, "add_generation_prompt": add_generation_prompt}
        return self._sandbox.render(self._source, context, max_chars, max_seconds=max_seconds)

    def _renders(self, content: Any) -> bool:
        """Whether a message with `content` comes out as its text, neither lost nor as Python's print of a list."""
        try:
            text = self.render(
                [{"role": "user", "content": content}], add_generation_prompt=True, max_chars=1 << 20, extra={}
            )
        except RenderTimeoutError as error:
            raise ConfigError(error.message) from None
        except (RequestError, RenderedTooLongError):
            return False
        return _PROBE in text and "'text'" not in text and '"text"' not in text
