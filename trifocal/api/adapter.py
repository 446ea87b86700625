"""`Api`: the form in which clients ask for answers and are given them. One class a surface, one object a request."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Self

from trifocal.api.events import Event, Usage
from trifocal.api.parsers.base import ParserFactory
from trifocal.api.service import Service
from trifocal.config.server import ServerArgs
from trifocal.errors import RequestError
from trifocal.http.context import RequestContext
from trifocal.prompt.ignored_fields import Ignored
from trifocal.sampling_params import SamplingParams
from trifocal.types import Prompt


class Api(ABC):
    """One request on a surface: what it asks for, and how its answer is written.

    Everything else (admission, times, media, the engine, hang-ups, metrics) is the affair of `Generation`, which knows
    no surface. Choices are numbered through: choice `i` belongs to prompt `i // params.n`.
    """

    id_prefix: ClassVar[str]  # of the answer's id

    id: str
    model: str  # as answers name it
    params: SamplingParams
    streams: bool
    renamed: Mapping[str, str]  # fields that `RequestError.param` may name, by the names that this surface has for them
    parsers: Sequence[ParserFactory]  # in order, made anew for each choice

    @classmethod
    @abstractmethod
    def parse(cls, data: bytes, args: ServerArgs) -> tuple[Any, tuple[Ignored, ...]]:
        """The body of a request, checked, and those of its fields that have no effect. Raises `RequestError`.

        Called outside the event loop where the body is long.
        """

    @classmethod
    @abstractmethod
    def open(cls, body: Any, service: Service, context: RequestContext) -> Self:
        """The request that a body is. Raises `RequestError` where it cannot be served."""

    @abstractmethod
    async def prompts(self) -> list[Prompt]:
        """The prompts to submit, with their media. Raises `RequestError`."""

    @abstractmethod
    def whole(self, choices: Sequence[Sequence[Event]], usage: Usage) -> Mapping[str, Any]:
        """The body of an answer that is not streamed, from all events of each choice."""

    @abstractmethod
    def start(self, num_choices: int, usage: Usage) -> Iterable[bytes]:
        """The frames of a stream that come before all tokens."""

    @abstractmethod
    def frames(self, index: int, events: Sequence[Event], usage: Usage) -> Iterable[bytes]:
        """The frames for events of choice `index`; `usage` counts what they bring."""

    @abstractmethod
    def end(self, usage: Usage) -> Iterable[bytes]:
        """The frames that come after the end of every choice."""

    @abstractmethod
    def error_frame(self, error: RequestError) -> bytes:
        """The last frame of a stream that breaks."""
