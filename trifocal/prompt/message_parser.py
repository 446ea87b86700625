"""`MessageParser`: OpenAI-style messages, checked and taken apart."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from trifocal.errors import RequestError
from trifocal.media.media import MediaRef
from trifocal.media.modalities import MODALITIES
from trifocal.prompt.parsed_chat import ParsedChat
from trifocal.prompt.part_options import part_options
from trifocal.prompt.parts import MEDIA_TYPES, TEXT_TYPES, URL_FIELDS, field_of, media_source, text_field_of, type_of
from trifocal.prompt.processor import TEXT_ONLY
from trifocal.prompt.template import ChatTemplate
from trifocal.prompt.tool_calls import parsed_tool_calls, string
from trifocal.tokenizer import Guard
from trifocal.types import Modality

_USUAL_ROLES = ("system", "user", "assistant", "tool", "developer")
PASSED_ON = ("name", "tool_call_id", "reasoning", "reasoning_content")
_REASONING = ("reasoning", "reasoning_content")  # two names for the same; templates read the one or the other


class MessageParser:
    """Reads messages for one template. `placeholder`: the text of a media item where the template takes no parts.

    `keeps_order`: such placeholders stay between the texts; otherwise they go first. `modalities`: the kinds of media
    that the model takes.
    """

    def __init__(
        self,
        template: ChatTemplate,
        placeholder: Callable[[Modality], str],
        *,
        keeps_order: bool = True,
        modalities: Collection[Modality] = tuple(MODALITIES),
    ) -> None:
        self._modalities = modalities
        self._template = template
        self._placeholder = placeholder
        self._keeps_order = keeps_order

    def parse(self, messages: object, guard: Guard) -> ParsedChat:
        """Check and take apart. Raises `RequestError` with the path of what is wrong."""
        if not isinstance(messages, list) or not messages:
            raise RequestError("messages must be a list of at least one message", param="messages")
        chat = ParsedChat()
        for index, message in enumerate(messages):
            chat.messages.append(self._message(message, f"messages[{index}]", guard, chat.media))
        return chat

    def _message(self, message: object, where: str, guard: Guard, media: list[MediaRef]) -> dict[str, Any]:
        if not isinstance(message, Mapping):
            raise RequestError(f"{where} must be an object with role and content", param=where)
        role = message.get("role")
        if role is None:
            raise RequestError(f"{where}.role is missing", param=f"{where}.role")
        if not isinstance(role, str) or not role:
            got = "an empty one" if role == "" else type(role).__name__
            raise RequestError(f"{where}.role must be a string that is not empty, got {got}", param=f"{where}.role")
        # Whether it takes a role is the template's affair. One that a client made up may hold control words.
        parsed: dict[str, Any] = {"role": role if role in _USUAL_ROLES else guard.hide(role)}
        tool_calls = message.get("tool_calls")
        content = message.get("content")
        if content is None and role != "assistant":
            raise RequestError(f"{where}.content is missing", param=f"{where}.content")
        parsed["content"] = self._content(content, f"{where}.content", guard, media)
        for name in PASSED_ON:
            if message.get(name) is not None:
                parsed[name] = guard.hide(string(message[name], f"{where}.{name}"))
        for name, other in zip(_REASONING, reversed(_REASONING), strict=True):
            if name in parsed:
                parsed.setdefault(other, parsed[name])
        if tool_calls is not None and tool_calls != []:
            parsed["tool_calls"] = guard.hide_all(parsed_tool_calls(tool_calls, f"{where}.tool_calls"))
        return parsed

    def _content(self, content: object, where: str, guard: Guard, media: list[MediaRef]) -> Any:
        if content is None:
            return "" if self._template.takes_string else []
        if isinstance(content, str):
            text = guard.hide(content)
            return text if self._template.takes_string else [{"type": "text", "text": text}]
        if not isinstance(content, list):
            raise RequestError(f"{where} must be a string or a list of parts", param=where)
        parts = [self._part(part, f"{where}[{index}]", guard, media) for index, part in enumerate(content)]
        return parts if self._template.takes_parts else self._flatten(parts)

    def _part(self, part: object, where: str, guard: Guard, media: list[MediaRef]) -> dict[str, str]:
        if isinstance(part, str):
            return {"type": "text", "text": guard.hide(part)}
        if not isinstance(part, Mapping):
            raise RequestError(f"{where} must be an object with a type", param=where)
        kind = type_of(part)
        if kind in TEXT_TYPES:
            name = text_field_of(kind)
            return {"type": "text", "text": guard.hide(string(part.get(name), f"{where}.{name}"))}
        modality = MEDIA_TYPES.get(kind) if isinstance(kind, str) else None
        if modality is None:
            known = ", ".join(("text", *URL_FIELDS))
            raise RequestError(
                f"{where}: parts of type {str(kind)[:40]!r} are not supported; supported: {known}", param=where
            )
        if modality not in self._modalities:
            raise RequestError(f"{where}: {TEXT_ONLY}", param=where)
        name = field_of(str(kind))
        source = media_source(part, name, modality, where)
        media.append(MediaRef(modality, source, f"{where}.{name}", part_options(part, name, modality, where)))
        return {"type": modality}

    def _flatten(self, parts: list[dict[str, str]]) -> str:
        """Parts as one string, a line each. Unless the order is kept, placeholders go before texts, kind by kind, as
        vLLM does it."""
        if not self._keeps_order:
            kinds = [*dict.fromkeys(part["type"] for part in parts if part["type"] != "text"), "text"]
            parts = sorted(parts, key=lambda part: kinds.index(part["type"]))
        return "\n".join(
            part["text"] if part["type"] == "text" else self._placeholder(MEDIA_TYPES[part["type"]]) for part in parts
        )
