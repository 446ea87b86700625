"""What chat and completions have in common: from a validated body to a response, whole or streamed."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterable, Mapping
from functools import partial
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from trifocal.api.answer import Answer
from trifocal.api.openai.schemas import GenerationBody, with_param
from trifocal.errors import RequestError
from trifocal.http.body import check_params
from trifocal.http.context import visit_of
from trifocal.http.disconnect import unless_disconnected
from trifocal.http.service import Service
from trifocal.http.sse import EventStream
from trifocal.http.timeouts import moment, preparing, timed_out, until, within
from trifocal.sampling_params import SamplingParams
from trifocal.types import Delta, Prompt, TokenLogprobs


class Generation(ABC):
    """One request. Created from its body: raises `RequestError` where that cannot be served."""

    id_prefix: str
    kind: str  # `object` of a whole answer
    chunk_kind: str  # `object` of a piece of a stream
    prompt_field: str  # where the body has what the model reads
    absent: tuple[str, ...]  # fields of a whole answer for what is not available here: null

    def __init__(self, service: Service, request: Request, body: GenerationBody, params: SamplingParams) -> None:
        self._service = service
        self._request = request
        self._body = body
        self._params = params
        self._visit = visit_of(request)
        self._visit.params = params
        self._renamed = {"messages": self.prompt_field, "prompt": self.prompt_field, **body.renamed}
        self._id = f"{self.id_prefix}-{self._visit.id}"
        self._created = int(time.time())
        self._model = self._visit.model = service.check_model(body.model)
        check_params(params, service.args)
        try:
            service.engine.check_max_tokens(params)
        except RequestError as error:  # the engine does not know what the fields are called here
            raise with_param(error, self._renamed) from None

    @abstractmethod
    async def prompts(self) -> list[Prompt]:
        """The prompts to submit. Raises `RequestError`."""

    @abstractmethod
    def choice(self, index: int, text: str, tokens: list[TokenLogprobs], last: Delta) -> Mapping[str, Any]:
        """A whole choice; `tokens` are its log-probabilities, `last` its last delta."""

    def openings(self, num_choices: int) -> Iterable[dict[str, Any]]:
        """The choices of chunks that come before all tokens."""
        return ()

    @abstractmethod
    def pieces(self, delta: Delta) -> Iterable[dict[str, Any]]:
        """The choices of the chunks that `delta` makes, in order."""

    async def respond(self) -> Response:
        """Generate; the client's hang-up aborts. What fails before the first token raises and gets an HTTP status."""
        receive, seconds = self._request.receive, self._service.args.request_timeout
        end = moment(seconds, since=self._visit.arrived)
        limit = partial(until, end, timed_out("the request", "request-timeout", seconds))
        async with limit():
            if self._body.stream:
                answer = await unless_disconnected(receive, self._open())
                return EventStream(self._chunks(answer), answer, limit)
            content = await unless_disconnected(receive, self._collect())
        return Response(msgspec.json.encode(content), media_type="application/json")

    async def _open(self) -> Answer:
        try:
            return await self._first_token()
        except RequestError as error:
            raise with_param(error, self._renamed) from None

    async def _first_token(self) -> Answer:
        """The answer as soon as it begins; until then the request has a place in the queue."""
        service, visit = self._service, self._visit
        with service.admission.place() as place:
            async with preparing(service.args):
                prompts = await self.prompts()
            place.add_tokens(sum(len(prompt.token_ids) for prompt in prompts))
            visit.keeps_pixels(prompts)
            async with within(service.args.queue_timeout, "waiting for the first token", "queue-timeout"):
                return await Answer.open(service, visit, self._id, prompts, self._params)

    async def _collect(self) -> dict[str, Any]:
        answer = await self._open()
        texts: list[list[str]] = [[] for _ in range(answer.num_choices)]
        tokens: list[list[TokenLogprobs]] = [[] for _ in texts]
        last: dict[int, Delta] = {}
        try:
            async for delta in answer:
                texts[delta.index].append(delta.text)
                tokens[delta.index] += delta.logprobs or []
                last[delta.index] = delta
        finally:
            await answer.aclose()
        choices = [self.choice(i, "".join(texts[i]), tokens[i], last[i]) for i in range(len(texts))]
        absent = dict.fromkeys(self.absent)
        return {**self._head(self.kind), "choices": choices, "usage": answer.usage(), **absent}

    async def _chunks(self, answer: Answer) -> AsyncGenerator[dict[str, Any], None]:
        head = self._head(self.chunk_kind)
        usage: dict[str, Any] = {"usage": None} if self._body.includes_usage else {}
        if self._body.has_running_usage:
            usage = {"usage": answer.usage_before_tokens()}
        for piece in self.openings(answer.num_choices):
            yield {**head, "choices": [piece], **usage}
        async for delta in answer:
            if self._body.has_running_usage:
                usage = {"usage": answer.usage()}
            for piece in self.pieces(delta):
                yield {**head, "choices": [piece], **usage}
        if self._body.includes_usage:
            yield {**head, "choices": [], "usage": answer.usage()}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}
