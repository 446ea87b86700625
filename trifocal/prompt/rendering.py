"""`ChatRenderer`: a chat as text and token ids, without any media work."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trifocal.errors import ArgumentError, ConfigError, RequestError, errors_in_keywords
from trifocal.media.media import MediaRef
from trifocal.prompt.item_options import as_object
from trifocal.prompt.message_parser import MessageParser
from trifocal.prompt.processor import Processor
from trifocal.prompt.template import ChatTemplate, RenderedTooLongError, check_variables, read_chat_template
from trifocal.prompt.text import TextEncoder
from trifocal.tokenizer import Tokenizer

_MAX_GIVEN_TEMPLATES = 16


@dataclass(frozen=True, slots=True)
class Rendered:
    """A chat as the template renders it: `token_ids` with one placeholder for each of `media`, not expanded."""

    text: str
    token_ids: list[int]
    media: list[MediaRef]


class ChatRenderer:
    """Renders for one model; for the arguments see `PromptBuilder`. Safe to use from several threads."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        processor: Processor,
        encoder: TextEncoder,
        *,
        chat_template: str | os.PathLike[str] | None,
        content_format: str,
        template_kwargs: Mapping[str, Any] | None,
        keeps_order: bool,
        check_counts: Callable[[Sequence[MediaRef]], None],
    ) -> None:
        self._tokenizer = tokenizer
        self._processor = processor
        self._encoder = encoder
        self._keeps_order = keeps_order
        self._check_counts = check_counts
        source = read_chat_template(chat_template) if chat_template else tokenizer.chat_template
        source = source or processor.chat_template
        self._template = ChatTemplate(source, tokenizer.special_tokens) if source else None
        if self._template is not None:
            self._template = self._template.formatted(content_format)
        self._given_templates: dict[str, ChatTemplate] = {}
        self._template_kwargs = dict(template_kwargs or {})
        try:
            check_variables(self._template_kwargs)
        except RequestError as error:
            raise ArgumentError("{default_chat_template_kwargs}: {}", error.message) from None

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template: str | None = None,
        chat_template_content_format: str = "auto",
        chat_template_kwargs: Mapping[str, Any] | None = None,
        max_seconds: float | None = None,
    ) -> Rendered:
        """Text and token ids of a chat, without any media work. For `max_seconds` see `ChatTemplate.render`.

        `chat_template` replaces the model's; `chat_template_content_format` is "auto", "string" or "openai", see
        `ChatTemplate.formatted`.
        """
        template = self._template if chat_template is None else self._given_template(chat_template)
        if template is None:
            raise RequestError(
                "the checkpoint has no chat template; give one by --chat-template (LLM: chat_template=)",
                param="messages",
            )
        template = template.formatted(chat_template_content_format)
        if add_generation_prompt and continue_final_message:
            raise RequestError(
                "continue_final_message and add_generation_prompt exclude each other", param="continue_final_message"
            )
        guard = self._tokenizer.guard()
        parser = MessageParser(
            template,
            self._processor.placeholder,
            keeps_order=self._keeps_order,
            modalities=self._processor.modalities,
        )
        try:
            chat = parser.parse(messages, guard)
            given = as_object(chat_template_kwargs, "chat_template_kwargs")
            extra = guard.hide_all({**self._template_kwargs, **given})
        except RecursionError:
            raise RequestError("the messages or their arguments are nested too deeply", param="messages") from None
        self._check_counts(chat.media)
        open_end = chat.leave_open(guard.mark) if continue_final_message else None
        try:
            text = template.render(
                chat.messages,
                add_generation_prompt=add_generation_prompt,
                max_chars=self._encoder.max_chars,
                extra=extra,
                max_seconds=max_seconds,
            )
        except RenderedTooLongError:
            raise self._encoder.too_long() from None
        if open_end is not None:
            text = open_end.cut(text)
        token_ids = self._encoder.chat(text, guard)
        self._encoder.check_length(token_ids)
        return Rendered(guard.reveal(text), token_ids, chat.media)

    def _given_template(self, text_or_path: str) -> ChatTemplate:
        """The template of one call; making it takes two renderings, so some are kept."""
        try:
            with errors_in_keywords():
                source = read_chat_template(text_or_path)
                template = self._given_templates.get(source) or ChatTemplate(source, self._tokenizer.special_tokens)
        except ConfigError as error:
            raise RequestError(str(error), param="chat_template") from None
        if len(self._given_templates) >= _MAX_GIVEN_TEMPLATES:
            self._given_templates.clear()
        self._given_templates[source] = template
        return template
