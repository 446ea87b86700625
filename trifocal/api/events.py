"""Events: what an answer consists of, in the words of no API. Parsers make more of them, an `Api` writes them down.

A list of events belongs to one choice; what one delta of the engine becomes is rendered together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trifocal.types import Delta, FinishReason, TokenLogprobs


@dataclass(slots=True)
class PromptTokens:
    """The first event of a choice whose request asks for log-probabilities of the prompt: one entry for each token,
    None for the first one and for those that stand for media."""

    logprobs: list[TokenLogprobs | None]


@dataclass(slots=True)
class Tokens:
    """Tokens behind the text of the same list, whatever of it is text; only where log-probabilities were asked for."""

    token_ids: list[int]
    logprobs: list[TokenLogprobs]


@dataclass(slots=True)
class Text:
    """A piece of the answer's text."""

    text: str


@dataclass(slots=True)
class Reasoning:
    """A piece of what the model thinks before it answers."""

    text: str


@dataclass(slots=True)
class ToolCall:
    """A piece of call `number` of a choice. The first piece has its `id` and `name`; `arguments` add up to JSON."""

    number: int
    id: str | None
    name: str | None
    arguments: str


@dataclass(slots=True)
class End:
    """A choice has ended. `stop_reason` is the stop string or token id of the request that ended it."""

    finish_reason: FinishReason
    stop_reason: int | str | None


Event = PromptTokens | Tokens | Text | Reasoning | ToolCall | End


@dataclass(slots=True)
class Usage:
    """Tokens of a whole request, all prompts and choices together: given beside the events of its choices."""

    num_prompt_tokens: int
    num_cached_tokens: int  # of those of the prompts: found in the prefix cache
    num_generated_tokens: int


def events_of(delta: Delta) -> Sequence[Event]:
    """The events of a delta, before any parser."""
    events: list[Event] = []
    if delta.prompt_logprobs is not None:
        events.append(PromptTokens(delta.prompt_logprobs))
    if delta.logprobs is not None:
        events.append(Tokens(delta.token_ids, delta.logprobs))
    if delta.text:
        events.append(Text(delta.text))
    if delta.finish_reason is not None:
        events.append(End(delta.finish_reason, delta.stop_reason))
    return events
