"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from trifocal.api.events import End, Event, PromptTokens, Text, Tokens
from trifocal.api.generation import respond
from trifocal.api.openai.base import ChoicesApi
from trifocal.api.openai.logprobs import completion_logprobs, echoed_logprobs, joined
from trifocal.api.openai.objects import CompletionChoice, CompletionLogprobs, TextCompletion
from trifocal.api.openai.schemas import CompletionBody
from trifocal.api.operations import PREPARING, described
from trifocal.api.service import Service
from trifocal.errors import RequestError
from trifocal.http.context import RequestContext
from trifocal.types import Prompt

router = APIRouter()


@router.post("/v1/completions", **described(CompletionBody, TextCompletion, errors=PREPARING, streams=True))
async def create_completion(request: Request) -> Response:
    """Continue one prompt or several, given as text or token ids."""
    return await respond(request, Completion)


class Completion(ChoicesApi):
    """One request to continue prompts."""

    body_model = CompletionBody
    id_prefix = "cmpl"
    kind = "text_completion"
    chunk_kind = "text_completion"
    prompt_field = "prompt"

    def __init__(self, service: Service, context: RequestContext, body: CompletionBody) -> None:
        super().__init__(service, context, body)
        self._body = body
        self._echoes: list[str] = []  # what each prompt's choices begin with
        self._prompts: list[list[int]] = []  # the same as tokens
        self._offsets: dict[int, int] = {}  # characters of each choice that have been sent
        num_answers, most = len(body.prompts) * self.params.n, service.args.max_answers
        if num_answers > most:
            raise RequestError(f"prompt: prompts times n must be at most {most} (--max-answers), got {num_answers}",
                               param="prompt")  # fmt: skip

    async def prompts(self) -> list[Prompt]:
        body, builder = self._body, self._service.builder
        special = body.add_special_tokens is not False
        built = []
        for text in body.prompts:
            built.append(await builder.completion(text, add_special_tokens=special, cache_salt=body.cache_salt))
            if body.echo:
                self._prompts.append(built[-1].token_ids)
                self._echoes.append(text if isinstance(text, str) else builder.tokenizer.decode(text, False))
        return built

    def choice(self, index: int, events: Sequence[Event]) -> CompletionChoice:
        shown = self.prompt_logprobs(events)
        return {**self.piece(index, events), "prompt_logprobs": shown}  # type: ignore[typeddict-item]

    def opening(self, index: int) -> None:
        """Nothing comes before the text."""

    def piece(self, index: int, events: Sequence[Event]) -> dict[str, Any]:
        """The choice of a chunk; the first one of a choice begins with the echo."""
        text = "" if index in self._offsets else self._echo(index)
        offset = self._offsets.get(index, 0) + len(text)
        logprobs: CompletionLogprobs | None = None
        end: End | None = None
        for event in events:
            match event:
                case PromptTokens() if self._prompts and self._body.logprobs is not None:
                    token_ids, shown = self._prompts[index // self.params.n], self._body.logprobs
                    logprobs = echoed_logprobs(self._echo(index), token_ids, event.logprobs, shown, self._tokenizer)
                case Text():
                    text += event.text
                case Tokens():
                    new = completion_logprobs(event.logprobs, self._tokenizer, offset)
                    logprobs = new if logprobs is None else joined(logprobs, new)
                case End():
                    end = event
        self._offsets[index] = self._offsets.get(index, 0) + len(text)
        return {
            "index": index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": end.finish_reason if end else None,
            "stop_reason": end.stop_reason if end else None,
            "token_ids": None,
        }

    def _echo(self, index: int) -> str:
        return self._echoes[index // self.params.n] if self._echoes else ""
