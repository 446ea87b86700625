"""Fields that nothing acts on: refused where they would change the answer, else accepted and told, never in silence."""

from __future__ import annotations

import json
import logging
from typing import Any, get_type_hints

import httpx
import openai
import pytest
from openai.types import chat, completion_create_params

from tests.api.helpers import HELLO, MODEL, ask, image_part, picture
from tests.api.test_refusals import names, refused
from trifocal.api.app import create_app
from trifocal.api.openai.errors import error_form
from trifocal.api.openai.extras import judge
from trifocal.api.openai.fields import BODY, STREAM_OPTIONS
from trifocal.api.openai.schemas import (
    Body,
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    GenerationBody,
    StreamOptions,
    TokenizeBody,
)
from trifocal.config.engine import EngineArgs, resolve
from trifocal.config.server import ServerArgs
from trifocal.errors import RequestError
from trifocal.http.access_log import fields as access_fields
from trifocal.http.context import IGNORED_HEADER as HEADER
from trifocal.http.context import RequestContext
from trifocal.prompt.ignored_fields import MAX_TEXT_BYTES, Ignored, text_of
from trifocal.prompt.message_fields import EMPTY, MESSAGE, PARTS, SOURCE, Scope

CHAT = "/v1/chat/completions"
PNG = image_part(picture())
SAMPLES: dict[str, Any] = {
    "tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required", "priority": 5,
    "response_format": {"type": "json_object"}, "modalities": ["audio"], "thinking_token_budget": 0,
    "length_penalty": 2, "web_search_options": {},
}  # fmt: skip


def chat_body(**fields: Any) -> ChatBody:
    return ChatBody.model_validate_json(json.dumps({"messages": HELLO, **fields}))


def told(body: Body) -> list[str]:
    return [str(field) for field in judge(body, body.without_effect, of_others=body.of_others)]


def post(http: httpx.Client, **fields: Any) -> httpx.Response:
    return http.post(CHAT, json={"model": MODEL, "messages": HELLO, "max_tokens": 2, **fields})


# ---------------------------------------------------------------------------------------------- the body


@pytest.mark.parametrize("name", BODY.refused)
def test_a_field_that_would_change_the_answer_is_refused(name: str) -> None:
    model: type[Body] = CompletionBody if name in ChatBody.model_fields else ChatBody  # a route may act on it

    def body(value: Any) -> Body:
        other = {"prompt": "x"} if model is CompletionBody else {"messages": HELLO}
        return model.model_validate_json(json.dumps({**other, name: value}))

    rule = BODY.refused[name]
    for value in (None, False, *(EMPTY if rule.is_empty_neutral else ()), *rule.neutral):
        assert told(body(value)) == []
    with pytest.raises(RequestError, match=f"not available yet: {name}") as caught:
        judge(body(SAMPLES.get(name, {"a": 1})))
    assert (caught.value.param, caught.value.code) == (name, "unsupported_parameter")


@pytest.mark.parametrize("name", BODY.hints)
def test_a_hint_is_accepted_and_told(name: str) -> None:
    assert told(chat_body(**{name: "x"})) == [name]
    assert told(chat_body(**{name: None})) == []  # asks for nothing


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("temperatur", "temperatur (did you mean temperature?)"),
        ("maxTokens", "maxTokens (did you mean max_tokens?)"),
        ("TOP_P", "TOP_P (did you mean top_p?)"),
        ("chat_template_kwarg", "chat_template_kwarg (did you mean chat_template_kwargs?)"),
        ("qqqq", "qqqq"),
    ],
)
def test_a_name_that_nobody_knows_is_told_with_the_nearest(
    name: str, shown: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert told(chat_body(**{name: 1, "user": "me"})) == [shown, "user"]
    assert shown in caplog.text and "user" not in caplog.text
    with pytest.raises(RequestError, match="--strict-request-fields") as caught:
        judge(chat_body(**{name: 1}), is_strict=True)
    assert (caught.value.param, caught.value.code) == (name, "unknown_parameter") and shown in caught.value.message
    assert judge(chat_body(user="me", store=True), is_strict=True)  # hints stay hints


def test_null_members_of_an_object_ask_for_nothing() -> None:
    assert (
        told(chat_body(response_format={"type": "text", "json_schema": None}, structured_outputs={"json": None})) == []
    )
    for value in ({"type": "text", "json_schema": {}}, {"type": "json_object", "json_schema": None}):
        with pytest.raises(RequestError, match="response_format"):
            judge(chat_body(response_format=value))
    with pytest.raises(RequestError, match="web_search_options"):  # where an empty one asks for something
        judge(chat_body(web_search_options={"user_location": None}))


def test_tools_that_may_not_be_called_are_told() -> None:
    assert told(chat_body(tools=SAMPLES["tools"], tool_choice="none", parallel_tool_calls=False)) == [
        "tools",
        "parallel_tool_calls",
    ]
    assert told(chat_body(best_of=3, n=3)) == []
    for value in (3, True):  # though Python says that True is 1
        with pytest.raises(RequestError, match="best_of"):
            judge(chat_body(best_of=value))
    for name, value in (("priority", 0.0), ("length_penalty", 1), ("best_of", 1.0)):
        assert told(chat_body(**{name: value})) == []
    for name, value in (("length_penalty", True), ("thinking_token_budget", -2), ("suffix", 0)):
        with pytest.raises(RequestError, match=name):
            judge(chat_body(**{name: value}))


def test_known_fields_without_effect_are_told() -> None:
    options = {"continuous_usage_stats": True, "include_obfuscation": False, "include_usages": True}
    assert told(chat_body(stream=True, stream_options=options)) == [
        "stream_options.include_usages (did you mean include_usage?)",
        "stream_options.continuous_usage_stats",
        "stream_options.include_obfuscation",
    ]
    options = {"continuous_usage_stats": True, "include_usage": True}
    assert told(chat_body(stream=True, stream_options=options)) == []
    body = TokenizeBody(prompt="x", add_generation_prompt=True, chat_template_kwargs={"a": 1})
    assert told(body) == ["add_generation_prompt", "chat_template_kwargs"]
    assert told(TokenizeBody(messages=HELLO, add_generation_prompt=True, chat_template_kwargs={"a": 1})) == []
    body = TokenizeBody.model_validate({"prompt": "x", "temperature": 0, "max_tokens": 1, "tokens": [1]})
    assert told(body)[1:] == ["temperature", "max_tokens"] and told(body)[0].startswith("tokens")
    assert told(chat_body(prompt="x")) == ["prompt"]


@pytest.mark.parametrize("body", [ChatBody, CompletionBody])
def test_no_field_of_ours_is_in_a_table_that_says_otherwise(body: type[GenerationBody]) -> None:
    assert not body.model_fields.keys() & BODY.hints.keys()
    assert not StreamOptions.model_fields.keys() & STREAM_OPTIONS.hints.keys()
    for scope in (BODY, MESSAGE, SOURCE, *PARTS.values()):
        assert not scope.hints.keys() & scope.refused.keys() and not scope.known & (scope.hints.keys() | scope.refused)


@pytest.mark.parametrize(
    ("path", "needed"), [("/v1/completions", {"prompt": "x", "max_tokens": 1}), ("/tokenize", {"prompt": "x"}),
                         ("/detokenize", {"tokens": [1]})],
)  # fmt: skip
@pytest.mark.parametrize("value", [5, "x", True, [{"audio": {"a": 1}}], {"a": 1}, ["x"] * 1000], ids=repr)
def test_a_field_of_another_route_may_hold_anything(
    http: httpx.Client, path: str, needed: dict[str, Any], value: Any
) -> None:
    """It is an attribute of the body as well, but none whose type was checked."""
    body = {"/v1/completions": CompletionBody, "/tokenize": TokenizeBody, "/detokenize": DetokenizeBody}[path]
    others = {"n", "stream_options", "messages", "stop", "stop_token_ids"} - body.model_fields.keys()
    for name in others:
        answer = http.post(path, json={**needed, name: value})
        assert answer.status_code == 200 and name in answer.headers[HEADER], (name, answer.text)


# ---------------------------------------------------------------------------------------------- inside of it


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ({"role": "user", "content": "x", "colour": 1}, ["messages[].colour"]),
        ({"role": "assistant", "content": "x", "tool_cals": []}, ["messages[].tool_cals (did you mean tool_calls?)"]),
        ({"role": "assistant", "content": "x", "refusal": None, "annotations": [], "audio": None},
         ["messages[].annotations"]),
        ({"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {}, "txet": 1}]},
         ["messages[].content[].txet (did you mean text?)", "messages[].content[].cache_control"]),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u", "detail": "low", "urls": 9}}]},
         ["messages[].content[].image_url.urls (did you mean url?)", "messages[].content[].image_url.detail"]),
        ({"role": "user", "content": [{"image_url": "u", "uuid": "a"}]}, ["messages[].content[].uuid"]),
        ({"role": "assistant", "content": "x", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}, "b": 2}]},
         []),
    ],
)  # fmt: skip
def test_messages_are_looked_into(message: dict[str, Any], shown: list[str]) -> None:
    assert told(chat_body(messages=[*HELLO, message, message])) == shown  # once for all messages


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "user", "content": "x", "tools": SAMPLES["tools"]}, "messages[1].tools"),
        ({"role": "assistant", "content": "x", "function_call": {"name": "f"}}, "messages[1].function_call"),
        ({"role": "assistant", "content": None, "audio": {"id": "a"}}, "messages[1].audio"),
        ({"role": "user", "content": ["x", {"type": "text", "text": "x", "image_url": {"url": "u"}}]},
         "messages[1].content[1].image_url"),
        ({"role": "user", "content": [{"text": "x", "image_url": {"url": "u"}}]}, "messages[1].content[0].image_url"),
    ],
)  # fmt: skip
def test_messages_with_more_than_is_done_are_refused(message: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError, match="not available yet") as caught:
        judge(chat_body(messages=[*HELLO, message]))
    assert caught.value.param == param


@pytest.mark.parametrize("part", [{"type": []}, {"type": {}}, {"type": 5}, {}, {"type": "no"}, 5, None, []], ids=str)
def test_parts_that_are_none_are_left_to_the_parser(part: Any) -> None:
    assert told(chat_body(messages=[{"role": "user", "content": [part]}, {"role": "user"}])) == []


def test_what_is_the_clients_own_is_not_looked_into() -> None:
    own = {"temperatur": {"a": 1}}
    call = {"function": {"name": "f", "arguments": own}}
    messages = [*HELLO, {"role": "assistant", "content": "x", "tool_calls": [call]}]
    body = chat_body(messages=messages, metadata=own, chat_template_kwargs=own, tools=[own], tool_choice="none")
    assert told(body) == ["tools", "metadata"]
    with pytest.raises(RequestError, match="response_format"):  # the whole of it, as long as there is no such thing
        judge(chat_body(response_format={"type": "json_schema", "json_schema": own}))


def test_every_field_of_the_openai_client_has_a_class() -> None:
    def unknown(kind: Any, scope: Scope, *known: type[Any]) -> set[str]:
        fields = getattr(kind, "model_fields", None) or get_type_hints(kind)
        return set(fields) - scope.names - {name for each in known for name in each.model_fields}

    params = chat.completion_create_params
    assert not unknown(params.CompletionCreateParamsNonStreaming, BODY, ChatBody)
    assert not unknown(completion_create_params.CompletionCreateParamsNonStreaming, BODY, CompletionBody)
    assert not unknown(chat.ChatCompletionStreamOptionsParam, STREAM_OPTIONS, StreamOptions)
    for role in ("Assistant", "User", "System", "Developer", "Tool"):
        assert not unknown(getattr(chat, f"ChatCompletion{role}MessageParam"), MESSAGE)
    assert not unknown(chat.ChatCompletionMessage, MESSAGE)  # answers come back as history
    assert not unknown(chat.ChatCompletionContentPartTextParam, PARTS["text"])
    assert not unknown(chat.ChatCompletionContentPartRefusalParam, PARTS["refusal"])
    assert not unknown(chat.ChatCompletionContentPartImageParam, PARTS["image_url"])
    assert not unknown(chat.chat_completion_content_part_image_param.ImageURL, SOURCE)


# ---------------------------------------------------------------------------------------------- how it is told


def test_the_header_is_ascii_and_bounded() -> None:
    odd = "näme, \n\r\x00 🦊(x)\\"
    text = text_of(judge(chat_body(**{odd: 1})))
    assert text.isascii() and text.isprintable() and "," not in text
    assert text.encode().decode("unicode_escape") == odd
    many = judge(chat_body(**{f"{number}" + "ü" * 200: 1 for number in range(3000)}, user="me", store=True))
    text = text_of(many)
    assert len(text) <= MAX_TEXT_BYTES and text.endswith(", ...") and len(many) < 30
    assert text_of(judge(chat_body(**{"": 1}))) == '""'  # a header that is there, but empty, would name nothing
    exact = [Ignored("a" * 600), Ignored("b" * (MAX_TEXT_BYTES - 602))]
    assert len(text_of(exact)) == MAX_TEXT_BYTES and text_of([*exact, Ignored("c")]) == "a" * 600 + ", ..."


def test_an_answer_tells_in_its_header(http: httpx.Client) -> None:
    assert HEADER not in post(http).headers
    fields = {name: "x" for name in BODY.hints}
    answer = post(http, temperatur=1, **fields)
    assert answer.status_code == 200, answer.text
    first, *others = answer.headers[HEADER].split(", ")
    assert first == "temperatur (did you mean temperature?)" and others == list(fields)
    asked = http.post("/tokenize", json={"model": MODEL, "prompt": "x", "add_special_token": True})
    assert asked.headers[HEADER] == "add_special_token (did you mean add_special_tokens?)"
    assert http.post("/detokenize", json={"tokens": [1], "x": 1}).headers[HEADER] == "x"


def test_neutral_values_are_not_told(http: httpx.Client) -> None:
    neutral = {name: (rule.neutral or (None,))[-1] for name, rule in BODY.refused.items()}
    answer = post(http, **neutral)
    assert answer.status_code == 200 and HEADER not in answer.headers, answer.text


@pytest.mark.parametrize("is_chat", [True, False])
def test_a_stream_tells_in_its_first_event(client: openai.OpenAI, is_chat: bool) -> None:
    extra = {"temperatur": 1, "näme": 2}
    options: dict[str, Any] = {"model": MODEL, "max_tokens": 3, "stream": True, "user": "me", "extra_body": extra}
    options["stream_options"] = {"include_usage": True}
    if is_chat:
        chunks: list[Any] = list(client.chat.completions.create(messages=HELLO, **options))
    else:
        chunks = list(client.completions.create(prompt="Hello", **options))
    first, *others = [(chunk.model_extra or {}).get("ignored_fields") for chunk in chunks]
    assert [(each["field"], each["nearest"]) for each in first] == [
        ("temperatur", "temperature"), ("näme", first[1]["nearest"]), ("user", None),
    ]  # fmt: skip
    assert others == [None] * len(others) and others and chunks[-1].usage.completion_tokens == 3
    options["extra_body"] = {}
    del options["user"]
    stream: Any = client.chat.completions.create(messages=HELLO, **options)
    assert not any("ignored_fields" in (chunk.model_extra or {}) for chunk in stream)


def test_the_access_log_tells() -> None:
    context = RequestContext("an-id", "POST", CHAT, "", httpx.Headers(), error_form)  # type: ignore[arg-type]
    assert "ignored_fields" not in access_fields(context)
    context.ignored = (Ignored("temperatur", is_known=False, nearest="temperature"), Ignored("user"))
    assert access_fields(context)["ignored_fields"] == "temperatur (did you mean temperature?), user"


async def test_strict_servers_refuse_what_nobody_knows(checkpoint: Any) -> None:
    config = resolve(EngineArgs(model=str(checkpoint)))
    app = create_app(None, None, config, ServerArgs(strict_request_fields=True))  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as strict:
        for fields, param in (
            ({"temperatur": 1}, "temperatur"),
            ({"messages": [{"role": "user", "content": "x", "nmae": 1}]}, "messages[0].nmae"),
        ):
            error = refused(await strict.post(CHAT, json={"messages": HELLO, **fields}))
            assert (error["param"], error["code"]) == (param, "unknown_parameter")
            assert "did you mean" in error["message"] and "--strict-request-fields" in error["message"]


def test_pictures_with_hints_are_answered(http: httpx.Client) -> None:
    part = {**PNG, "image_url": {**PNG["image_url"], "detail": "high"}}
    answer = post(http, messages=ask(part, part))
    assert answer.status_code == 200 and answer.headers[HEADER] == "messages[].content[].image_url.detail"
    both = {**PNG, "text": "What is this?"}
    assert names(refused(post(http, messages=ask(both))), "messages")
