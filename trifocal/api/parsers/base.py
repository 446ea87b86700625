"""`Parser`: turns the text of one choice into further events."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from trifocal.api.events import Event
from trifocal.types import Prompt


class Parser(Protocol):
    """Parses one choice. What comes out must not depend on how its text was cut into pieces."""

    def feed(self, event: Event) -> Iterable[Event]:
        """What `event` becomes: itself where it is none of the parser's business, nothing while text is held back.

        `End` is the last event; text that is still held back comes out before it.
        """


ParserFactory = Callable[[Prompt], Parser]
"""Makes the parser of a choice of a prompt: the end of the prompt may have opened what the answer closes."""


class ParserChain:
    """The parsers of one choice, one behind the other."""

    def __init__(self, parsers: Sequence[Parser]) -> None:
        self._parsers = parsers

    def feed(self, events: Sequence[Event]) -> Sequence[Event]:
        """What the events become after the last parser."""
        for parser in self._parsers:
            events = [made for event in events for made in parser.feed(event)]
        return events
