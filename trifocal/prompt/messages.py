"""OpenAI-style messages, checked and taken apart: what the chat template renders, and which media they name."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from trifocal.errors import RequestError
from trifocal.log import get_logger
from trifocal.media.media import MediaRef
from trifocal.prompt.part_options import part_options
from trifocal.prompt.processor import TEXT_ONLY
from trifocal.prompt.template import ChatTemplate
from trifocal.tokenizer import Guard, valid_text
from trifocal.types import Modality

_log = get_logger(__name__)

_USUAL_ROLES = ("system", "user", "assistant", "tool", "developer")
TEXT_TYPES = ("text", "input_text", "output_text", "refusal")
MEDIA_TYPES: dict[str, Modality] = {
    "image_url": "image",
    "input_image": "image",
    "image": "image",
    "image_pil": "image",
    "video_url": "video",
    "video": "video",
}
TYPELESS = ("text", "image_url", "video_url", "image", "video")  # parts need no type where they have such a field
PASSED_ON = ("name", "tool_call_id", "reasoning", "reasoning_content")
_REASONING = ("reasoning", "reasoning_content")  # two names for the same; templates read the one or the other
_PROBE = "\N{EM SPACE}"  # white space that templates do not write: where it is gone, the template strips texts
URL_FIELDS = ("image_url", "video_url")  # a URL or an object with one; other fields may hold objects offline


@dataclass(slots=True)
class Conversation:
    """`messages` as the chat template takes them, user text guarded; `media` in order of appearance."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    media: list[MediaRef] = field(default_factory=list)

    def leave_open(self, mark: str) -> OpenEnd:
        """Put `mark` behind the last message, so that its end is found again in a rendering. Raises `RequestError`."""
        last = self.messages[-1]
        parts = [{"type": "text", "text": last["content"]}] if isinstance(last["content"], str) else last["content"]
        if not any(part["type"] == "text" and part["text"].strip() for part in parts):
            raise RequestError("continue_final_message needs a last message with text", param="continue_final_message")
        if parts[-1]["type"] != "text":
            parts = [*parts, {"type": "text", "text": ""}]
        words = parts[-1]["text"]
        parts = [*parts[:-1], {"type": "text", "text": f"{words}{mark}{_PROBE}"}]
        last["content"] = parts[0]["text"] if isinstance(last["content"], str) else parts
        return OpenEnd(mark, words[len(words.rstrip()) :])


@dataclass(frozen=True, slots=True)
class OpenEnd:
    """Where a last message ends that the model goes on with. `mark` stands there, behind white space `spaces`.

    A text to look for would not do: the message may end in letters that the template writes behind it as well.
    """

    mark: str
    spaces: str

    def cut(self, rendered: str) -> str:
        """`rendered` up to the mark; without the spaces if the template strips texts. Raises `RequestError`."""
        before, mark, behind = rendered.rpartition(self.mark)
        if not mark:
            raise RequestError(
                "continue_final_message: the chat template does not show the text of the last message",
                param="continue_final_message",
            )
        before = before.replace(self.mark + _PROBE, "").replace(self.mark, "")  # a template may show a text twice
        return before if behind.startswith(_PROBE) else before.removesuffix(self.spaces)


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
        modalities: Collection[Modality] = ("image", "video"),
    ) -> None:
        self._template = template
        self._placeholder = placeholder
        self._keeps_order = keeps_order
        self._modalities = modalities

    def parse(self, messages: object, guard: Guard) -> Conversation:
        """Check and take apart. Raises `RequestError` with the path of what is wrong."""
        if not isinstance(messages, list) or not messages:
            raise RequestError("messages must be a list of at least one message", param="messages")
        conversation = Conversation()
        for index, message in enumerate(messages):
            conversation.messages.append(self._message(message, f"messages[{index}]", guard, conversation.media))
        return conversation

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
                parsed[name] = guard.hide(_string(message[name], f"{where}.{name}"))
        for name, other in zip(_REASONING, reversed(_REASONING), strict=True):
            if name in parsed:
                parsed.setdefault(other, parsed[name])
        if tool_calls is not None and tool_calls != []:
            parsed["tool_calls"] = guard.hide_all(_tool_calls(tool_calls, f"{where}.tool_calls"))
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
            return {"type": "text", "text": guard.hide(_string(part.get(name), f"{where}.{name}"))}
        modality = MEDIA_TYPES.get(kind) if isinstance(kind, str) else None
        if modality is None:
            raise RequestError(
                f"{where}: parts of type {str(kind)[:40]!r} are not supported; supported: text, image_url, video_url",
                param=where,
            )
        if modality not in self._modalities:
            raise RequestError(f"{where}: {TEXT_ONLY}", param=where)
        name = field_of(str(kind))
        source = _media_source(part, name, modality, where)
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


def type_of(part: Mapping[str, Any]) -> Any:
    """The type that a part gives, else the one of `TYPELESS` whose field it has, as vLLM does; None if it has none."""
    return part.get("type") or next((name for name in TYPELESS if part.get(name) is not None), None)


def text_field_of(kind: str) -> str:
    """Where a text part of type `kind` has its text."""
    return "refusal" if kind == "refusal" else "text"


def field_of(kind: str) -> str:
    """Where a media part of type `kind` has its source."""
    return "image_url" if kind == "input_image" else kind


def _media_source(part: Mapping[str, Any], name: str, modality: Modality, where: str) -> Any:
    source = part.get(name)
    if source is None:
        raise RequestError(f"{where}.{name} is missing", param=where)
    if name in URL_FIELDS:
        if isinstance(source, Mapping):
            source = source.get("url")
            name = f"{name}.url"
        if not _is_source(source, modality):
            what = "a URL" if modality == "image" else "a URL or a list of URLs, one a frame"
            raise RequestError(f"{where}.{name} must be {what}, got {_kind(source)}", param=where)
    if isinstance(source, list):
        return [valid_text(item) if isinstance(item, str) else item for item in source]
    return valid_text(source) if isinstance(source, str) else source


def _is_source(source: object, modality: Modality) -> bool:
    if isinstance(source, list):
        return modality == "video" and bool(source) and all(isinstance(item, str) and item for item in source)
    return isinstance(source, str) and bool(source)


def _kind(source: object) -> str:
    if isinstance(source, list) and source:
        wrong = next((item for item in source if not isinstance(item, str) or not item), None)
        return "a list" if wrong is None else f"a list with {_kind(wrong)} in it"
    return "an empty text" if source == "" else "an empty list" if source == [] else type(source).__name__


def _string(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise RequestError(f"{where} must be a string, got {type(value).__name__}", param=where)
    return value


def _check_types(call: Mapping[str, Any], where: str) -> None:
    for name in ("id", "type"):
        if call.get(name) is not None:
            _string(call[name], f"{where}.{name}")
    arguments, path = call["function"].get("arguments"), f"{where}.function.arguments"
    if not isinstance(arguments, str | Mapping | None):
        raise RequestError(f"{path} must be JSON text or an object, got {type(arguments).__name__}", param=path)


def _tool_calls(calls: object, where: str) -> list[dict[str, Any]]:
    """Calls with their arguments as objects, which is what templates expect; clients send them as JSON text."""
    if not isinstance(calls, list):
        raise RequestError(f"{where} must be a list", param=where)
    parsed = []
    for index, call in enumerate(calls):
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise RequestError(f"{where}[{index}] must have a function with a name", param=f"{where}[{index}]")
        _check_types(call, f"{where}[{index}]")
        arguments = function.get("arguments") or {}
        if isinstance(arguments, str):
            arguments = _parsed(arguments, f"{where}[{index}].function.arguments")
        parsed.append({**call, "function": {**function, "arguments": arguments}})
    return parsed


def _parsed(arguments: str, where: str) -> Any:
    """What the JSON text says. One that a model has spoilt stays text: it must not block the rest of its chat."""
    try:
        return json.loads(arguments)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        _log.warning("%s is not JSON (%s); the chat template gets it as text", where, reason)
        return arguments
