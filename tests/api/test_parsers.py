"""Between an answer and the API that writes it down stands a list of parsers: made-up ones, on a real answer's way."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from starlette.datastructures import Headers

from tests.api.helpers import HELLO
from trifocal.api.app import _service
from trifocal.api.events import End, Event, Reasoning, Text, ToolCall, Usage, events_of
from trifocal.api.openai.chat import Chat
from trifocal.api.openai.errors import error_form
from trifocal.api.parsers.base import Parser, ParserChain
from trifocal.config.engine import EngineArgs, resolve
from trifocal.config.server import ServerArgs
from trifocal.engine.output import Choice
from trifocal.http.context import RequestContext
from trifocal.media.fetch.policy import FetchPolicy
from trifocal.prompt.builder import PromptBuilder
from trifocal.sampling_params import SamplingParams
from trifocal.types import Delta, Prompt, Request, TokenLogprobs, TokenOutput

ANSWER = "Well <think>why 👍 < not</think>yes <call>f(1)</call> and <call>g(2)</call><"
USAGE = Usage(3, 0, 9)


class Marked:
    """Text between two marks is something else. What may be the beginning of a mark is held back."""

    def __init__(self, begin: str, end: str) -> None:
        self._marks = (begin, end)
        self._is_inside = False
        self._held = ""

    def feed(self, event: Event) -> Iterable[Event]:
        """See `Parser`."""
        if not isinstance(event, Text | End):
            return [event]
        if isinstance(event, End):
            return [*self._made(self._held), event]
        made: list[Event] = []
        self._held += event.text
        while (mark := self._marks[self._is_inside]) in self._held:
            text, _, self._held = self._held.partition(mark)
            made += [*self._made(text), *self.turn()]
            self._is_inside = not self._is_inside
        safe = len(self._held) - next((n for n in range(len(mark) - 1, 0, -1) if self._held.endswith(mark[:n])), 0)
        text, self._held = self._held[:safe], self._held[safe:]
        return [*made, *self._made(text)]

    def turn(self) -> list[Event]:
        """What a mark becomes."""
        return []

    def inside(self, text: str) -> Event:
        """What text between the marks becomes."""
        return Reasoning(text)

    def _made(self, text: str) -> list[Event]:
        return ([self.inside(text)] if self._is_inside else [Text(text)]) if text else []


class Calls(Marked):
    """Calls of tools: the first piece has the name."""

    def __init__(self) -> None:
        super().__init__("<call>", "</call>")
        self._number = -1

    def turn(self) -> list[Event]:
        """A call begins with its name."""
        if self._is_inside:
            return []
        self._number += 1
        return [ToolCall(self._number, f"call-{self._number}", "f", "")]

    def inside(self, text: str) -> Event:
        """Everything between the marks is arguments."""
        return ToolCall(self._number, None, None, text)


def thinking(prompt: Prompt) -> Parser:
    return Marked("<think>", "</think>")


def calling(prompt: Prompt) -> Parser:
    return Calls()


@pytest.fixture(scope="module")
def chats(checkpoint: Path) -> Any:
    """Makes a request for a conversation, on a server with parsers but without an engine."""
    config, args = resolve(EngineArgs(model=str(checkpoint))), ServerArgs()
    builder = PromptBuilder(config, fetch_policy=FetchPolicy())
    service = _service(cast(Any, None), builder, config, args, None)
    object.__setattr__(service, "parsers", (thinking, calling))

    def make(**fields: Any) -> Chat:
        body, ignored = Chat.parse(json.dumps({"messages": HELLO, **fields}).encode(), args)
        context = RequestContext("an-id", "POST", "/v1/chat/completions", "", Headers(), error_form, ignored=ignored)
        return Chat.open(cast(Any, body), service, context)

    yield make
    builder.close()


def deltas_of(chat: Chat, sizes: Iterable[int]) -> list[Delta]:
    """The deltas of an engine that says `ANSWER`, with `sizes` tokens in each of its outputs."""
    tokenizer = chat._tokenizer
    ids = tokenizer.encode(ANSWER)
    choice = Choice(0, Request("a", Prompt([5, 6, 7]), SamplingParams(max_tokens=999, logprobs=0)), tokenizer)
    deltas = []
    for size in sizes:
        new, ids = ids[:size], ids[size:]
        logprobs = [TokenLogprobs([token_id], [-0.5], 1) for token_id in new]
        delta = choice.feed(TokenOutput("a", new, logprobs, finish_reason=None if ids else "stop"))
        deltas += [] if delta is None else [delta]
        if not ids:
            return deltas
    raise AssertionError("more sizes are needed")


def chain(chat: Chat) -> ParserChain:
    return ParserChain([make(Prompt([5, 6, 7])) for make in chat.parsers])


def whole(chat: Chat) -> dict[str, Any]:
    [delta] = deltas_of(chat, [10_000])
    answer = chat.whole([chain(chat).feed(events_of(delta))], USAGE)
    return dict(answer["choices"][0])


def streamed(chat: Chat, sizes: Iterable[int]) -> list[dict[str, Any]]:
    """The choices of the chunks of a stream."""
    parsers, frames = chain(chat), list(chat.start(1, USAGE))
    for delta in deltas_of(chat, sizes):
        frames += chat.frames(0, parsers.feed(events_of(delta)), USAGE)
    frames += chat.end(USAGE)
    assert frames.pop() == b"data: [DONE]\n\n"
    return [json.loads(frame.removeprefix(b"data: "))["choices"][0] for frame in frames]


def test_an_answer_is_what_parsers_make_of_it(chats: Any) -> None:
    choice = whole(chats())
    message = choice["message"]
    assert (message["content"], message["reasoning"]) == ("Well yes  and <", "why 👍 < not")
    assert [(call["id"], call["type"], call["function"]) for call in message["tool_calls"]] == [
        ("call-0", "function", {"name": "f", "arguments": "f(1)"}),
        ("call-1", "function", {"name": "f", "arguments": "g(2)"}),
    ]
    assert choice["finish_reason"] == "tool_calls"


def test_a_stream_says_the_same_however_it_is_cut(chats: Any) -> None:
    expected, rng = whole(chats(logprobs=True)), random.Random(3)
    cuts: list[Sequence[int]] = [[1] * 200, [3] * 200, *([rng.randint(1, 9) for _ in range(200)] for _ in range(20))]
    for sizes in cuts:
        first, *pieces = streamed(chats(logprobs=True, stream=True), sizes)
        assert first["delta"] == {"role": "assistant", "content": ""}
        deltas = [piece["delta"] for piece in pieces]
        for name in ("content", "reasoning"):
            assert "".join(delta.get(name, "") for delta in deltas) == expected["message"][name], sizes
        calls: dict[int, dict[str, str]] = {}
        for call in (call for delta in deltas for call in delta.get("tool_calls", [])):
            if "id" in call:
                assert (call["type"], call["index"]) == ("function", len(calls))
                calls[call["index"]] = {**call["function"]}
            else:
                calls[call["index"]]["arguments"] += call["function"]["arguments"]
        assert list(calls.values()) == [call["function"] for call in expected["message"]["tool_calls"]]
        assert [piece["finish_reason"] for piece in pieces] == [None] * (len(pieces) - 1) + ["tool_calls"]
        tokens = [token for piece in pieces for token in piece["logprobs"]["content"]]
        assert tokens == expected["logprobs"]["content"], "tokens are told when they come, whatever they become"


def test_without_parsers_text_is_text(chats: Any) -> None:
    chat = chats()
    chat.parsers = ()
    message = whole(chat)["message"]
    assert (message["content"], message["reasoning"], message["tool_calls"]) == (ANSWER, None, None)
