"""POST /tokenize and /detokenize, in vLLM's form."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from trifocal.api.openai.body import read_body
from trifocal.api.openai.chat_prompt import build_chat_prompt
from trifocal.api.openai.objects import Detokenized, Tokenized
from trifocal.api.openai.schemas import DetokenizeBody, TokenizeBody
from trifocal.api.operations import PREPARING, READING, described
from trifocal.api.service import Service, service_of
from trifocal.errors import RequestError
from trifocal.http.disconnect import unless_disconnected
from trifocal.http.timeouts import preparing

router = APIRouter()


@router.post("/tokenize", **described(TokenizeBody, Tokenized, errors=PREPARING))
async def tokenize(request: Request) -> Response:
    """Token ids of a prompt or a conversation, placeholders of media expanded: what the model would see."""
    service = service_of(request)
    body = await read_body(request, TokenizeBody)
    service.check_model(body.model)
    content = await unless_disconnected(request.receive, _tokenize(service, body))
    return Response(msgspec.json.encode(content), media_type="application/json")


async def _tokenize(service: Service, body: TokenizeBody) -> Tokenized:
    with service.admission.place():
        async with preparing(service.args):
            token_ids = await _token_ids(service, body)
    spell = service.builder.tokenizer.id_to_token
    return {
        "count": len(token_ids),
        "max_model_len": service.engine.max_model_len,
        "tokens": token_ids,
        "token_strs": [spell(token_id) or "" for token_id in token_ids] if body.return_token_strs else None,
    }


async def _token_ids(service: Service, body: TokenizeBody) -> list[int]:
    if body.prompt is None:
        return (await build_chat_prompt(service.builder, body)).token_ids
    _check_chars(service, body.prompt)
    special = body.add_special_tokens is not False
    return await asyncio.to_thread(service.builder.tokenizer.encode, body.prompt, add_special_tokens=special)


def _check_chars(service: Service, prompt: str) -> None:
    """Counting may go beyond the context, but tokenizing megabytes of text would take a core for minutes."""
    most = service.config.scheduling.max_model_len * service.builder.tokenizer.longest_token
    if len(prompt) > most:
        raise RequestError(f"prompt: at most {most} characters can be tokenized, got {len(prompt)}", param="prompt")


@router.post("/detokenize", **described(DetokenizeBody, Detokenized, errors=READING))
async def detokenize(request: Request) -> Response:
    """Text of token ids, special tokens shown."""
    service = service_of(request)
    body = await read_body(request, DetokenizeBody)
    service.check_model(body.model)
    _check_token_ids(body.tokens, service.config.model.spec.text.vocab_size)
    text = await asyncio.to_thread(service.builder.tokenizer.decode, body.tokens, False)
    answer: Detokenized = {"prompt": text}
    return Response(msgspec.json.encode(answer), media_type="application/json")


def _check_token_ids(token_ids: Sequence[int], vocab_size: int) -> None:
    """Raise `RequestError` for an id that the model does not have."""
    for token_id in token_ids:
        if not 0 <= token_id < vocab_size:
            raise RequestError(f"tokens: the vocabulary ends at {vocab_size - 1}, got {token_id}", param="tokens")
