"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from trifocal.api.generation import Generation
from trifocal.api.openai.logprobs import chat_logprobs
from trifocal.api.openai.responses import ChatChoice, ChatCompletion, ChatLogprobs, ChatMessage
from trifocal.api.openai.schemas import ChatBody
from trifocal.api.operations import PREPARING, described
from trifocal.api.prompts import build_chat_prompt
from trifocal.http.body import read_json
from trifocal.http.service import Service, service_of
from trifocal.types import Delta, Prompt, TokenLogprobs

router = APIRouter()


@router.post("/v1/chat/completions", **described(ChatBody, ChatCompletion, errors=PREPARING, streams=True))
async def create_chat_completion(request: Request) -> Response:
    """Answer a conversation, in one body or as a stream."""
    body = await read_json(request, ChatBody)
    return await Chat(service_of(request), request, body).respond()


class Chat(Generation):
    """One request for an answer in a conversation."""

    id_prefix = "chatcmpl"
    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"
    prompt_field = "messages"
    absent = ("service_tier", "system_fingerprint", "prompt_logprobs")

    def __init__(self, service: Service, request: Request, body: ChatBody) -> None:
        super().__init__(service, request, body, body.to_params(service.config.model.default_sampling))
        self._chat = body
        self._role = service.args.response_role

    async def prompts(self) -> list[Prompt]:
        """The conversation, rendered and with its media."""
        prompt = await build_chat_prompt(self._service.builder, self._chat, self._chat.cache_salt)
        self._chat.messages = []  # megabytes of base64 that a long answer need not hold
        return [prompt]

    def choice(self, index: int, text: str, tokens: list[TokenLogprobs], last: Delta) -> ChatChoice:
        """A choice of a `chat.completion`."""
        message: ChatMessage = {
            "role": self._role,
            "content": text,
            "refusal": None,
            "annotations": None,
            "audio": None,
            "function_call": None,
            "tool_calls": None,
            "reasoning": None,
        }
        return {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(tokens),
            "finish_reason": last.finish_reason,
            "stop_reason": last.stop_reason,
            "token_ids": None,
        }

    def openings(self, num_choices: int) -> Iterable[dict[str, Any]]:
        """The role of each choice, before any text."""
        for index in range(num_choices):
            first = {"role": self._role, "content": ""}
            yield {"index": index, "delta": first, "logprobs": None, "finish_reason": None}

    def pieces(self, delta: Delta) -> Iterable[dict[str, Any]]:
        """One choice of a `chat.completion.chunk`: text, and with the last one the finish_reason."""
        piece: dict[str, Any] = {
            "index": delta.index,
            "delta": {"content": delta.text} if delta.text else {},
            "logprobs": self._logprobs(delta.logprobs or []),
            "finish_reason": delta.finish_reason,
            "token_ids": None,
        }
        yield piece | {"stop_reason": delta.stop_reason} if delta.finish_reason else piece

    def _logprobs(self, tokens: list[TokenLogprobs]) -> ChatLogprobs | None:
        return chat_logprobs(tokens, self._service.builder.tokenizer) if self._chat.logprobs else None
