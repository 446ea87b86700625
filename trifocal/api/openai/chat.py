"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from trifocal.api.events import End, Event, Reasoning, Text, Tokens, ToolCall, Usage
from trifocal.api.generation import respond
from trifocal.api.openai.base import ChoicesApi
from trifocal.api.openai.chat_prompt import build_chat_prompt
from trifocal.api.openai.logprobs import chat_logprobs
from trifocal.api.openai.objects import ChatChoice, ChatCompletion, ChatMessage, FunctionCall
from trifocal.api.openai.schemas import ChatBody
from trifocal.api.operations import PREPARING, described
from trifocal.api.service import Service
from trifocal.http.context import RequestContext
from trifocal.types import Prompt

router = APIRouter()


@router.post("/v1/chat/completions", **described(ChatBody, ChatCompletion, errors=PREPARING, streams=True))
async def create_chat_completion(request: Request) -> Response:
    """Answer a conversation, in one body or as a stream."""
    return await respond(request, Chat)


class Chat(ChoicesApi):
    """One request for an answer in a conversation."""

    body_model = ChatBody
    id_prefix = "chatcmpl"
    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"
    prompt_field = "messages"

    def __init__(self, service: Service, context: RequestContext, body: ChatBody) -> None:
        super().__init__(service, context, body)
        self.parsers = service.parsers
        self._body = body
        self._calling: set[int] = set()  # choices with calls of tools
        self._role = service.args.response_role

    async def prompts(self) -> list[Prompt]:
        prompt = await build_chat_prompt(self._service.builder, self._body, self._body.cache_salt)
        self._body.messages = []  # megabytes of base64 that a long answer need not hold
        return [prompt]

    def whole(self, choices: Sequence[Sequence[Event]], usage: Usage) -> Mapping[str, Any]:
        return {**super().whole(choices, usage), "prompt_logprobs": self.prompt_logprobs(choices[0])}

    def choice(self, index: int, events: Sequence[Event]) -> ChatChoice:
        piece = self.piece(index, events)
        delta = piece["delta"]
        calls = _calls(events)
        message: ChatMessage = {
            "role": self._role,
            "content": delta.get("content", None if calls else ""),
            "refusal": None,
            "annotations": None,
            "audio": None,
            "function_call": None,
            "tool_calls": calls or None,
            "reasoning": delta.get("reasoning"),
        }
        return {
            "index": index,
            "message": message,
            "logprobs": piece["logprobs"],
            "finish_reason": piece["finish_reason"],
            "stop_reason": piece.get("stop_reason"),
            "token_ids": None,
        }

    def opening(self, index: int) -> dict[str, Any]:
        """The role of a choice, before any text."""
        first = {"role": self._role, "content": ""}
        return {"index": index, "delta": first, "logprobs": None, "finish_reason": None}

    def piece(self, index: int, events: Sequence[Event]) -> dict[str, Any]:
        """A choice of a `chat.completion.chunk`: what is new of the message, and at its end the finish_reason."""
        delta: dict[str, Any] = {}
        piece: dict[str, Any] = {
            "index": index, "delta": delta, "logprobs": None, "finish_reason": None, "token_ids": None,
        }  # fmt: skip
        for event in events:
            match event:
                case Text():
                    delta["content"] = delta.get("content", "") + event.text
                case Reasoning():
                    delta["reasoning"] = delta.get("reasoning", "") + event.text
                case ToolCall():
                    self._calling.add(index)
                    delta.setdefault("tool_calls", []).append(_call_piece(event))
                case Tokens():
                    piece["logprobs"] = chat_logprobs(event.logprobs, self._tokenizer)
                case End():
                    has_called = event.finish_reason == "stop" and index in self._calling
                    piece["finish_reason"] = "tool_calls" if has_called else event.finish_reason
                    piece["stop_reason"] = event.stop_reason
        return piece


def _call_piece(event: ToolCall) -> dict[str, Any]:
    if event.id is None:
        return {"index": event.number, "function": {"arguments": event.arguments}}
    function = {"name": event.name, "arguments": event.arguments}
    return {"index": event.number, "id": event.id, "type": "function", "function": function}


def _calls(events: Sequence[Event]) -> list[FunctionCall]:
    """The calls that pieces add up to, in the order of their numbers."""
    found: dict[int, FunctionCall] = {}
    for event in events:
        if isinstance(event, ToolCall):
            new: FunctionCall = {
                "id": event.id or "", "type": "function", "function": {"name": event.name or "", "arguments": ""},
            }  # fmt: skip
            found.setdefault(event.number, new)["function"]["arguments"] += event.arguments
    return [found[number] for number in sorted(found)]
