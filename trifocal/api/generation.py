"""From a request for an answer to a response, whole or streamed: what all surfaces have in common."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from functools import partial

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from trifocal.api.adapter import Api
from trifocal.api.answer_stream import AnswerStream
from trifocal.api.events import Event, Usage, events_of
from trifocal.api.parsers.base import ParserChain
from trifocal.api.service import Service, service_of
from trifocal.api.validation import with_param
from trifocal.config.server import ServerArgs
from trifocal.engine.output import Answer
from trifocal.errors import RequestError
from trifocal.http.body import read_json
from trifocal.http.context import context_of
from trifocal.http.disconnect import unless_disconnected
from trifocal.http.sse import EventStream
from trifocal.http.timeouts import moment, preparing, timed_out, until, within
from trifocal.sampling_params import SamplingParams
from trifocal.types import Delta, Prompt

MAX_STOP_LENGTH = 1024  # characters of text held back while a stop string may be coming
_MAX_BAD_WORDS_LENGTH = 16384  # characters of all together: they are tokenized on the event loop


async def respond(request: Request, surface: type[Api]) -> Response:
    """Read a request as `surface` does and answer it; the client's hang-up aborts.

    What fails before the first token raises and gets an HTTP status.
    """
    service, context = service_of(request), context_of(request)
    parse = partial(surface.parse, args=service.args)
    body, context.ignored = await read_json(request, service.admission, service.args, parse)
    return await Generation(service, request, surface.open(body, service, context)).respond()


class Generation:
    """One request for an answer, in the form of `api`. Raises `RequestError` where that cannot be served."""

    def __init__(self, service: Service, request: Request, api: Api) -> None:
        self._service = service
        self._request = request
        self._api = api
        self._context = context_of(request)
        self._context.params, self._context.model = api.params, api.model
        _check_params(api.params, service.args)
        try:
            service.engine.check_max_tokens(api.params)
        except RequestError as error:  # the engine does not know what the fields are called here
            raise with_param(error, api.renamed) from None

    async def respond(self) -> Response:
        """Generate, and answer in one body or as a stream."""
        receive, seconds = self._request.receive, self._service.args.request_timeout
        end = moment(seconds, since=self._context.arrived)
        limit = partial(until, end, timed_out("the request", "request-timeout", seconds))
        async with limit():
            if self._api.streams:
                stream, chains = await unless_disconnected(receive, self._open(keeps_text=False))
                return EventStream(self._frames(stream, chains), stream, limit, self._api.error_frame)
            content = await unless_disconnected(receive, self._whole())
        return Response(content, media_type="application/json")

    async def _open(self, *, keeps_text: bool) -> tuple[AnswerStream, list[ParserChain]]:
        try:
            return await self._first_token(keeps_text)
        except RequestError as error:
            raise with_param(error, self._api.renamed) from None

    async def _first_token(self, keeps_text: bool) -> tuple[AnswerStream, list[ParserChain]]:
        """The answer as soon as it begins; until then the request has a place in the queue."""
        service, context, api = self._service, self._context, self._api
        with service.admission.place() as place:
            async with preparing(service.args):
                prompts = await api.prompts()
            place.add_tokens(sum(len(prompt.token_ids) for prompt in prompts))
            context.keeps_pixels(prompts)
            chains = [self._chain(prompt) for prompt in prompts for _ in range(api.params.n)]
            async with within(service.args.queue_timeout, "waiting for the first token", "queue-timeout"):
                stream = await AnswerStream.open(
                    service, context, api.id, prompts, api.params, keeps_text=keeps_text
                )  # fmt: skip
        return stream, chains

    def _chain(self, prompt: Prompt) -> ParserChain:
        return ParserChain([make(prompt) for make in self._api.parsers])

    async def _whole(self) -> bytes:
        stream, chains = await self._open(keeps_text=True)
        try:
            async for _ in stream:
                pass
        finally:
            await stream.aclose()
        answer = stream.answer
        choices: list[Sequence[Event]] = [
            chain.feed(events_of(_as_one_delta(answer, index))) for index, chain in enumerate(chains)
        ]
        return msgspec.json.encode(self._api.whole(choices, _usage(answer)))

    async def _frames(self, stream: AnswerStream, chains: Sequence[ParserChain]) -> AsyncGenerator[bytes, None]:
        api, answer = self._api, stream.answer
        for frame in api.start(len(chains), replace(_usage(answer), num_generated_tokens=0)):
            yield frame
        async for delta in stream:
            events = chains[delta.index].feed(events_of(delta))
            if events:
                for frame in api.frames(delta.index, events, _usage(answer)):
                    yield frame
        for frame in api.end(_usage(answer)):
            yield frame


def _usage(answer: Answer) -> Usage:
    return Usage(answer.num_prompt_tokens, answer.num_cached_tokens, answer.num_generated_tokens)


def _as_one_delta(answer: Answer, index: int) -> Delta:
    """All of a choice that has ended."""
    choice = answer.choice(index)
    return Delta(
        index,
        choice.text,
        choice.token_ids,
        choice.logprobs,
        choice.finish_reason,
        choice.stop_reason,
        prompt_logprobs=answer.outputs[index // answer.n].prompt_logprobs,
    )


def _check_params(params: SamplingParams, args: ServerArgs) -> None:
    """Raise `RequestError` for amounts that no engine should be asked for; what this one has, it checks itself."""
    if params.n > args.max_n:
        raise RequestError(f"n must be at most {args.max_n} (--max-n), got {params.n}", param="n")
    if any(len(text) > MAX_STOP_LENGTH for text in params.stop_strings):
        raise RequestError(f"stop must be strings of at most {MAX_STOP_LENGTH} characters", param="stop")
    if sum(map(len, params.bad_words or ())) > _MAX_BAD_WORDS_LENGTH:
        raise RequestError(f"bad_words must have at most {_MAX_BAD_WORDS_LENGTH} characters together",
                           param="bad_words")  # fmt: skip
