"""The OpenAPI document is true: of the routes there are, of the models that check requests, of the answers given."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from fastapi.routing import APIRoute
from hypothesis import HealthCheck, Phase, given, seed, settings
from jsonschema_rs import Draft202012Validator
from pydantic import ValidationError
from schemathesis import Case, GenerationMode, openapi

from tests import tiny
from tests.api.helpers import HELLO, MODEL
from trifocal.api import status
from trifocal.api.app import create_app
from trifocal.api.openai.extras import judge
from trifocal.api.openai.schemas import (
    Body,
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    GenerationBody,
    MessagesBody,
    TokenizeBody,
)
from trifocal.api.openai.surface import OPENAI
from trifocal.api.openapi import document
from trifocal.api.operations import operation_of
from trifocal.config.engine import EngineArgs, resolve
from trifocal.config.server import ServerArgs
from trifocal.errors import RequestError
from trifocal.prompt.message_parser import MessageParser
from trifocal.prompt.template import ChatTemplate
from trifocal.sampling_params import SAMPLING_BOUNDS
from trifocal.tokenizer import Guard

CHAT = "/v1/chat/completions"
ROUTES = [cast(APIRoute, route) for router in (*OPENAI.routers, status.router) for route in router.routes]
CHANCES = pytest.mark.parametrize("chance", [5, pytest.param(None, marks=pytest.mark.slow)])
GENERATED = settings(
    max_examples=15, phases=[Phase.generate], database=None, deadline=None, suppress_health_check=list(HealthCheck)
)
# Refusals that a schema cannot foresee: two fields that must fit each other.
BETWEEN_FIELDS = (
    "stream_options",
    "top_logprobs",
    "continue_final_message",
    "min_tokens",
    "tools",
    "functions",
    "best_of",
    "prompt_logprobs",
)


def strategy(path: str, mode: GenerationMode = GenerationMode.POSITIVE) -> Any:
    return openapi.from_dict(document(ROUTES, has_keys=False))[path]["POST"].as_strategy(generation_mode=mode)


# ---------------------------------------------------------------------------------------------- publishing


def test_it_is_published(http: httpx.Client) -> None:
    answer = http.get("/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == json.loads(json.dumps(document(ROUTES, has_keys=True)))
    assert httpx.get(f"{http.base_url}/openapi.json").status_code == 401


def test_every_route_is_in_it_and_nothing_else(checkpoint: Path) -> None:
    config = resolve(EngineArgs(model=str(checkpoint)))
    for args, published in ((ServerArgs(), 1), (ServerArgs(disable_fastapi_docs=True), 0)):
        app = create_app(cast(Any, None), cast(Any, None), config, args)
        served = [included.original_router.routes for included in cast(Any, app.routes)]
        paths = {route.path_format for routes in served for route in routes}
        assert len(paths & {"/openapi.json"}) == published
        assert paths - {"/openapi.json"} == set(document(ROUTES, has_keys=False)["paths"])


def test_keys_are_told_of_where_they_are_asked_for() -> None:
    paths = document(ROUTES, has_keys=True)["paths"]
    assert paths[CHAT]["post"]["security"] and "401" in paths["/metrics"]["get"]["responses"]
    assert "security" not in paths["/health"]["get"] and "401" not in paths["/health"]["get"]["responses"]
    assert "security" not in document(ROUTES, has_keys=False)["paths"][CHAT]["post"]


def test_every_reference_leads_somewhere() -> None:
    content = document(ROUTES, has_keys=True)
    text = json.dumps(content)
    names = {part.partition('"')[0] for part in text.split('"$ref": "#/components/schemas/')[1:]}
    assert names and names <= set(content["components"]["schemas"])


# ---------------------------------------------------------------------------------------------- requests


@pytest.mark.parametrize("route", [route for route in ROUTES if operation_of(route).body], ids=lambda route: route.path)
def test_the_route_checks_the_fields_of_its_model(http: httpx.Client, route: APIRoute) -> None:
    body = operation_of(route).body
    assert body is not None
    for name in body.model_fields:
        answer = http.post(route.path, json={"messages": HELLO, "prompt": "x", "tokens": [1], name: {"a": {"b": []}}})
        if name in ("chat_template_kwargs", "mm_processor_kwargs"):  # may be any object
            continue
        assert answer.status_code == 400 and answer.json()["error"]["param"] == name, (name, answer.text)


def bounded(model: type[GenerationBody]) -> list[tuple[type[GenerationBody], str]]:
    names = {"max_completion_tokens": "max_tokens", "top_logprobs": "logprobs"}
    return [(model, name) for name in model.model_fields if names.get(name, name) in SAMPLING_BOUNDS]


@pytest.mark.parametrize(("model", "name"), bounded(ChatBody) + bounded(CompletionBody), ids=str)
def test_bounds_are_those_of_the_check(model: type[GenerationBody], name: str) -> None:
    schema = next(kind for kind in model.model_json_schema()["properties"][name]["anyOf"] if "type" in kind)
    if schema["type"] == "boolean":  # chat's logprobs is a switch
        return
    good, bad = extremes(schema)
    needed: dict[str, Any] = {"messages": HELLO, "logprobs": True} if model is ChatBody else {"prompt": "x"}

    def is_taken(value: float) -> bool:
        prompt = {"prompt_logprobs": 0}
        beside = {"min_tokens": {"max_tokens": 2**31 - 1}, "max_tokens": prompt, "max_completion_tokens": prompt}
        fields = {**needed, **beside.get(name, {}), name: value}
        try:
            cast(Any, model.model_validate_json(json.dumps(fields))).to_params({})
        except (ValidationError, RequestError):
            return False
        return True

    assert [is_taken(value) for value in good] == [True] * len(good), good
    assert [is_taken(value) for value in bad] == [False] * len(bad), bad


def extremes(schema: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Numbers at the ends of a schema's range, and just beyond them."""
    step = 1 if schema["type"] == "integer" else 1e-9
    good, bad = [], []
    for name, sign in (("minimum", -1), ("maximum", 1)):
        if name in schema:
            good.append(schema[name])
            bad.append(schema[name] + sign * step)
    for name, sign in (("exclusiveMinimum", -1), ("exclusiveMaximum", 1)):
        if name in schema:
            bad.append(schema[name])
            good.append(schema[name] - sign * step)
    return good, bad


@cache
def template() -> ChatTemplate:
    return ChatTemplate(tiny.CHAT_TEMPLATE, {})


def check(content: Any, model: type[Body]) -> None:
    """All that is checked of a body before anything is made of it. Raises `ValidationError` or `RequestError`."""
    body = cast(Any, model.model_validate_json(json.dumps(content)))
    judge(body)
    if isinstance(body, GenerationBody):
        cast(Any, body).to_params({})
    if isinstance(body, MessagesBody) and body.messages is not None:
        parser = MessageParser(template(), lambda modality: f"<{modality}>")
        for ref in parser.parse(body.messages, Guard(re.compile("(?!)"), frozenset())).media:
            if not all(isinstance(url, str) for url in (ref.source if isinstance(ref.source, list) else [ref.source])):
                raise RequestError("objects are for Python alone")  # as whoever opens it will say


# /tokenize has chat's messages and two forms, which `test_it_says_what_is_checked` has; generating both takes seconds.
BODIES: list[tuple[str, type[Body]]] = [
    (CHAT, ChatBody), ("/v1/completions", CompletionBody), ("/detokenize", DetokenizeBody),
]  # fmt: skip


@CHANCES
@pytest.mark.parametrize(("path", "model"), BODIES)
def test_what_it_allows_is_taken(path: str, model: type[Body], chance: int | None) -> None:
    run(path, GenerationMode.POSITIVE, chance, lambda case: check(case.body, model))


@cache
def schema_of(model: type[Body]) -> Draft202012Validator:
    schemas = document(ROUTES, has_keys=False)["components"]
    return Draft202012Validator({"$ref": f"#/components/schemas/{model.__name__}", "components": schemas})


def describes(content: Any, model: type[Body]) -> bool:
    return schema_of(model).is_valid(content)


CALL = {"function": {"name": "f", "arguments": "{}"}}


def said(**message: Any) -> dict[str, Any]:
    return {"messages": [{"role": "assistant", "content": "x", **message}]}


@pytest.mark.parametrize(
    ("model", "content", "is_right"),
    [
        (TokenizeBody, {}, False), (TokenizeBody, {"prompt": None}, False), (TokenizeBody, {"prompt": "x"}, True),
        (TokenizeBody, {"messages": HELLO}, True), (TokenizeBody, {"messages": HELLO, "prompt": None}, True),
        (TokenizeBody, {"messages": HELLO, "prompt": "x"}, False), (TokenizeBody, {"messages": []}, False),
        (TokenizeBody, {"prompt": "x", "add_special_tokens": True}, True),
        (TokenizeBody, {"messages": HELLO, "add_special_tokens": True}, False),
        (TokenizeBody, {"messages": HELLO, "add_special_tokens": False}, True),
        (ChatBody, said(content=[{"text": "x"}]), True), (ChatBody, said(content=[{"type": None, "text": "x"}]), True),
        (ChatBody, said(content=[{"image_url": "u"}]), True), (ChatBody, said(content=[{"image_url": 5}]), False),
        (ChatBody, said(content=[{}]), False), (ChatBody, said(content=[{"type": 5, "text": "x"}]), False),
        (ChatBody, said(content=[{"text": "x", "image_url": "u"}]), False),
        (ChatBody, said(content=[{"type": "text", "text": "x", "image_url": None}]), True),
        (ChatBody, said(tool_calls=[CALL]), True), (ChatBody, said(tool_calls=[]), True),
        (ChatBody, said(tool_calls=None), True), (ChatBody, said(role="user", tool_calls=[CALL]), True),
        (ChatBody, said(tool_calls=0), False), (ChatBody, said(tool_calls=""), False),
        (ChatBody, said(tool_calls={}), False), (ChatBody, said(role="user", tool_calls=[{}]), False),
        (ChatBody, said(tool_calls=[{"function": {"name": "f", "arguments": 5}}]), False),
        (ChatBody, said(tool_calls=[{"function": {"name": "f", "arguments": None}}]), True),
        (ChatBody, said(tool_calls=[{**CALL, "id": 5}]), False), (ChatBody, said(function_call=CALL), False),
        (ChatBody, said(content=[{"image_url": "u", "max_pixels": 12544.0}]), True),
        (ChatBody, said(content=[{"image_url": {"url": "u", "max_pixels": 12544.0}}]), True),
        (ChatBody, said(content=[{"image_url": "u", "max_pixels": 12544.5}]), False),
        (ChatBody, {"messages": HELLO, "response_format": {"type": "text", "json_schema": None}}, True),
        (ChatBody, {"messages": HELLO, "response_format": {"type": "text", "json_schema": {}}}, False),
        (ChatBody, {"messages": HELLO, "response_format": {"type": None}, "audio": {"format": None}}, True),
        (ChatBody, said(content=[{"image_url": "u", "num_frames": 4}]), False),
        (ChatBody, said(content=[{"video_url": {"url": "u", "use_thumbnail": True}}]), False),
        (ChatBody, said(content=[{"image_url": {"url": "u", "fps": None}, "use_image_id": None}]), True),
        (ChatBody, said(content=[{"image_url": "u", "use_image_id": True}]), False),
        (ChatBody, {"messages": HELLO, "media_io_kwargs": {"video": {"num_frames": 4.0}}}, True),
        (ChatBody, {"messages": HELLO, "media_io_kwargs": {"video": {"frames_indices": [0.0, 1]}}}, True),
        (ChatBody, {"messages": HELLO, "media_io_kwargs": {"video": {"num_frames": 4.5}}}, False),
        (CompletionBody, {"prompt": [1, 2]}, True), (CompletionBody, {"prompt": [1.0, 2]}, True),
        (CompletionBody, {"prompt": [[1.0], "x"]}, True), (CompletionBody, {"prompt": [1.5]}, False),
        (CompletionBody, {"prompt": [-1]}, False), (CompletionBody, {"prompt": [[-1]]}, False),
        (CompletionBody, {"prompt": ["x", ""]}, False), (CompletionBody, {"prompt": [[1], []]}, False),
        (CompletionBody, {"prompt": "x", "stop_token_ids": [1.0]}, True),
        (CompletionBody, {"prompt": "x", "stop_token_ids": [-1]}, False),
        (CompletionBody, {"prompt": "x", "max_tokens": 3.0, "stream": 1.0}, True),
        (DetokenizeBody, {"tokens": [1, 2.0]}, True), (DetokenizeBody, {"tokens": [-1]}, False),
        (DetokenizeBody, {"tokens": [1.5]}, False), (DetokenizeBody, {"tokens": [2**31]}, False),
    ],
    ids=str,
)  # fmt: skip
def test_it_says_what_is_checked(model: type[Body], content: Any, is_right: bool) -> None:
    def is_taken() -> bool:
        try:
            check(content, model)
        except (ValidationError, RequestError):
            return False
        return True

    assert (describes(content, model), is_taken()) == (is_right, is_right)


@CHANCES
@pytest.mark.parametrize(("path", "model"), BODIES)
def test_what_it_forbids_is_refused(path: str, model: type[Body], chance: int | None) -> None:
    refused = []

    def expect_refusal(case: Case) -> None:
        if isinstance(case.body, dict) and not describes(case.body, model):  # headers are made wrong, too
            try:
                check(case.body, model)
            except (ValidationError, RequestError):
                refused.append(case)
            else:
                raise AssertionError(case.body)

    run(path, GenerationMode.NEGATIVE, chance, expect_refusal)
    assert len(refused) >= 2


def run(path: str, mode: GenerationMode, chance: int | None, judge: Callable[[Case], None]) -> None:
    @seed(random.getrandbits(64) if chance is None else chance)  # shown where a case fails
    @GENERATED
    @given(strategy(path, mode))
    def judged(case: Case) -> None:
        try:
            judge(case)
        except RequestError as error:
            is_between = error.param in BETWEEN_FIELDS or "given twice" in error.message  # nframes and num_frames
            assert is_between or "not JSON" in error.message, (error.message, case.body)

    judged()


# ---------------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"model": MODEL, "messages": HELLO, "max_tokens": 3, "n": 2, "logprobs": True, "top_logprobs": 2}),
        ("/v1/completions", {"model": MODEL, "prompt": ["a", "b"], "max_tokens": 3, "logprobs": 2}),
        (CHAT, {"model": MODEL, "messages": HELLO, "max_tokens": 2, "stream": True}),
        ("/tokenize", {"messages": HELLO, "return_token_strs": True}),
        ("/tokenize", {"prompt": "hello"}),
        ("/detokenize", {"tokens": [1, 2]}),
        (CHAT, {"model": "nobody", "messages": HELLO}),
        (CHAT, {"model": MODEL}),
        ("/v1/models", None),
        (f"/v1/models/{MODEL}", None),
        ("/v1/models/nobody", None),
        ("/version", None),
        ("/metrics", None),
    ],
    ids=str,
)
def test_answers_are_as_described(http: httpx.Client, path: str, body: dict[str, Any] | None) -> None:
    template = path if path.count("/models/") == 0 else "/v1/models/{name}"
    operation = openapi.from_dict(document(ROUTES, has_keys=False))[template]["GET" if body is None else "POST"]
    answer = http.get(path) if body is None else http.post(path, json=body)
    operation.validate_response(answer)
    described = operation.definition.raw["responses"][str(answer.status_code)]
    assert answer.headers["content-type"].partition(";")[0] in described["content"]
