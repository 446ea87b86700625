"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from trifocal.api.generation import Generation
from trifocal.api.openai.logprobs import completion_logprobs
from trifocal.api.openai.responses import CompletionChoice, CompletionLogprobs, TextCompletion
from trifocal.api.openai.schemas import CompletionBody
from trifocal.api.operations import PREPARING, described
from trifocal.errors import RequestError
from trifocal.http.body import read_json
from trifocal.http.service import Service, service_of
from trifocal.types import Delta, Prompt, TokenLogprobs

router = APIRouter()


@router.post("/v1/completions", **described(CompletionBody, TextCompletion, errors=PREPARING, streams=True))
async def create_completion(request: Request) -> Response:
    """Continue one prompt or several, given as text or token ids."""
    body = await read_json(request, CompletionBody)
    return await Completion(service_of(request), request, body).respond()


class Completion(Generation):
    """One request to continue prompts; choice `i` belongs to prompt `i // n`."""

    id_prefix = "cmpl"
    kind = "text_completion"
    chunk_kind = "text_completion"
    prompt_field = "prompt"
    absent = ("service_tier", "system_fingerprint")

    def __init__(self, service: Service, request: Request, body: CompletionBody) -> None:
        super().__init__(service, request, body, body.to_params(service.config.model.default_sampling))
        self._completion = body
        self._echoes: list[str] = []  # what each prompt's choices begin with
        self._offsets: dict[int, int] = {}  # characters of each choice that have been sent
        num_answers, most = len(body.prompts) * self._params.n, service.args.max_answers
        if num_answers > most:
            raise RequestError(f"prompt: prompts times n must be at most {most} (--max-answers), got {num_answers}",
                               param="prompt")  # fmt: skip
        if body.echo and body.logprobs is not None:
            raise RequestError("not available yet: echo together with logprobs", param="echo",
                               code="unsupported_parameter")  # fmt: skip

    async def prompts(self) -> list[Prompt]:
        """The prompts, tokenized."""
        body, builder = self._completion, self._service.builder
        special = body.add_special_tokens is not False
        built = []
        for text in body.prompts:
            built.append(await builder.completion(text, add_special_tokens=special, cache_salt=body.cache_salt))
            if body.echo:
                self._echoes.append(text if isinstance(text, str) else builder.tokenizer.decode(text, False))
        return built

    def choice(self, index: int, text: str, tokens: list[TokenLogprobs], last: Delta) -> CompletionChoice:
        """A choice of a `text_completion`."""
        return {
            "index": index,
            "text": self._echo(index) + text,
            "logprobs": self._logprobs(tokens, 0),
            "finish_reason": last.finish_reason,
            "stop_reason": last.stop_reason,
            "token_ids": None,
            "prompt_logprobs": None,
        }

    def pieces(self, delta: Delta) -> Iterable[dict[str, Any]]:
        """One piece of a stream; the first of a choice begins with the echo."""
        offset = self._offsets.get(delta.index)
        self._offsets[delta.index] = (offset or 0) + len(delta.text)
        yield {
            "index": delta.index,
            "text": (self._echo(delta.index) if offset is None else "") + delta.text,
            "logprobs": self._logprobs(delta.logprobs or [], offset or 0),
            "finish_reason": delta.finish_reason,
            "stop_reason": delta.stop_reason,
            "token_ids": None,
        }

    def _echo(self, index: int) -> str:
        return self._echoes[index // self._params.n] if self._echoes else ""

    def _logprobs(self, tokens: list[TokenLogprobs], offset: int) -> CompletionLogprobs | None:
        if self._completion.logprobs is None:
            return None
        return completion_logprobs(tokens, self._service.builder.tokenizer, offset)
