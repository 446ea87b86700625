"""What the surfaces of OpenAI's that answer in choices have in common: heads, usage, `data:` events, `[DONE]`."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Self

import msgspec

from trifocal.api.adapter import Api
from trifocal.api.events import Event, PromptTokens, Usage
from trifocal.api.openai.body import parse_body
from trifocal.api.openai.errors import error_form
from trifocal.api.openai.extras import event_of
from trifocal.api.openai.logprobs import prompt_logprobs
from trifocal.api.openai.objects import PromptLogprobs
from trifocal.api.openai.objects import Usage as UsageForm
from trifocal.api.openai.schemas import GenerationBody
from trifocal.api.service import Service
from trifocal.config.server import ServerArgs
from trifocal.errors import RequestError
from trifocal.http.context import RequestContext
from trifocal.http.sse import frame
from trifocal.prompt.ignored_fields import Ignored

_DONE = frame(b"[DONE]")


class ChoicesApi(Api):
    """An answer with `choices`; each chunk of a stream has one of them."""

    body_model: ClassVar[type[GenerationBody]]
    kind: ClassVar[str]  # `object` of a whole answer
    chunk_kind: ClassVar[str]  # `object` of a chunk
    prompt_field: ClassVar[str]  # where the body has what the model reads
    absent: ClassVar = ("service_tier", "system_fingerprint")  # of a whole answer, for what is not here: null

    @classmethod
    def open(cls, body: GenerationBody, service: Service, context: RequestContext) -> Self:
        return cls(service, context, body)

    def __init__(self, service: Service, context: RequestContext, body: GenerationBody) -> None:
        self.id = f"{self.id_prefix}-{context.id}"
        self.model = service.check_model(body.model)
        self.params = body.to_params(service.config.model.default_sampling)
        self.streams = bool(body.stream)
        self.renamed = {"messages": self.prompt_field, "prompt": self.prompt_field, **body.renamed}
        self.parsers = ()
        self._service = service
        self._tokenizer = service.builder.tokenizer
        self._prompt_logprobs = body.prompt_logprobs
        self._includes_usage, self._has_running_usage = body.includes_usage, body.has_running_usage
        self._created = int(time.time())
        self._told = event_of(context.ignored)  # in the first chunk
        self._chunk_head = self._head(self.chunk_kind)

    @classmethod
    def parse(cls, data: bytes, args: ServerArgs) -> tuple[GenerationBody, tuple[Ignored, ...]]:
        return parse_body(data, cls.body_model, args)

    @abstractmethod
    def choice(self, index: int, events: Sequence[Event]) -> Mapping[str, Any]:
        """A choice of a whole answer."""

    @abstractmethod
    def opening(self, index: int) -> Mapping[str, Any] | None:
        """The choice of a chunk that comes before all tokens; None for no chunk."""

    @abstractmethod
    def piece(self, index: int, events: Sequence[Event]) -> Mapping[str, Any]:
        """The choice of the chunk that events become."""

    def whole(self, choices: Sequence[Sequence[Event]], usage: Usage) -> Mapping[str, Any]:
        made = [self.choice(index, events) for index, events in enumerate(choices)]
        return {**self._head(self.kind), "choices": made, "usage": _usage(usage), **dict.fromkeys(self.absent)}

    def prompt_logprobs(self, events: Sequence[Event]) -> PromptLogprobs | None:
        """vLLM's field, if it was asked for, from the events of a choice."""
        asked = self._prompt_logprobs
        found = next((event for event in events if isinstance(event, PromptTokens)), None)
        return None if asked is None or found is None else prompt_logprobs(found.logprobs, asked, self._tokenizer)

    def start(self, num_choices: int, usage: Usage) -> Iterable[bytes]:
        for index in range(num_choices):
            opening = self.opening(index)
            if opening is not None:
                yield self._chunk([opening], usage)

    def frames(self, index: int, events: Sequence[Event], usage: Usage) -> Iterable[bytes]:
        return (self._chunk([self.piece(index, events)], usage),)

    def end(self, usage: Usage) -> Iterable[bytes]:
        if self._includes_usage:
            yield frame(msgspec.json.encode({**self._chunk_head, "choices": [], "usage": _usage(usage)}))
        yield _DONE

    def error_frame(self, error: RequestError) -> bytes:
        return frame(msgspec.json.encode(error_form(error)))

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self._created, "model": self.model}

    def _chunk(self, choices: list[Mapping[str, Any]], usage: Usage) -> bytes:
        chunk = {**self._chunk_head, "choices": choices}
        if self._includes_usage:
            chunk["usage"] = _usage(usage) if self._has_running_usage else None
        if self._told:
            chunk |= self._told
            self._told = {}
        return frame(msgspec.json.encode(chunk))


def _usage(usage: Usage) -> UsageForm:
    return {
        "prompt_tokens": usage.num_prompt_tokens,
        "completion_tokens": usage.num_generated_tokens,
        "total_tokens": usage.num_prompt_tokens + usage.num_generated_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.num_cached_tokens},
    }
