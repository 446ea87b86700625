"""`ParsedChat`: what the chat template renders, and which media it names; `OpenEnd`: where the model goes on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from trifocal.errors import RequestError
from trifocal.media.media import MediaRef

_PROBE = "\N{EM SPACE}"  # white space that templates do not write: where it is gone, the template strips texts


@dataclass(slots=True)
class ParsedChat:
    """`messages` as the chat template takes them, user text guarded; `media` in order of appearance."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    media: list[MediaRef] = field(default_factory=list)

    def leave_open(self, mark: str) -> OpenEnd:
        """Put `mark` behind the last message, so that its end is found again in a rendering. Raises `RequestError`."""
        last = self.messages[-1]
        parts = [{"type": "text", "text": last["content"]}] if isinstance(last["content"], str) else last["content"]
        if not any(part["type"] == "text" and part["text"].strip() for part in parts):
            raise RequestError("continue_final_message needs text in the last message", param="continue_final_message")
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
