"""POST /tokenize and /detokenize."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.api.helpers import HELLO, MODEL, ask, image_part, picture
from tests.api.test_refusals import names, refused


def tokenize(http: httpx.Client, **fields: Any) -> dict[str, Any]:
    response = http.post("/tokenize", json={"model": MODEL, **fields})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_text_goes_there_and_back(http: httpx.Client) -> None:
    text = "How many red circles? Ünïcödé 漢字 🦊"
    answer = tokenize(http, prompt=text)
    assert answer["count"] == len(answer["tokens"]) > 0
    assert answer["max_model_len"] == 1024 and answer["token_strs"] is None
    back = http.post("/detokenize", json={"model": MODEL, "tokens": answer["tokens"]})
    assert back.json() == {"prompt": text}


def test_token_strings(http: httpx.Client) -> None:
    answer = tokenize(http, prompt="The fox<|im_end|>", return_token_strs=True)
    assert len(answer["token_strs"]) == answer["count"] and answer["token_strs"][-1] == "<|im_end|>"


def test_messages_cost_what_chat_charges(http: httpx.Client) -> None:
    messages = ask(image_part(picture()))
    body = {"model": MODEL, "messages": messages, "max_tokens": 1}
    usage = http.post("/v1/chat/completions", json=body).json()["usage"]
    assert tokenize(http, messages=messages)["count"] == usage["prompt_tokens"]


def test_generation_prompt(http: httpx.Client) -> None:
    whole = tokenize(http, messages=HELLO)["tokens"]
    without = tokenize(http, messages=HELLO, add_generation_prompt=False)["tokens"]
    assert whole[: len(without)] == without and len(whole) > len(without)


@pytest.mark.parametrize(
    "fields, param",
    [({}, "prompt"), ({"prompt": "a", "messages": HELLO}, "prompt"), ({"prompt": 5}, "prompt"),
     ({"prompt": "x" * 1_000_000}, "prompt"), ({"messages": []}, "messages"),
     ({"messages": [{"role": "user"}]}, "messages"),
     ({"messages": HELLO, "add_special_tokens": True}, "add_special_tokens"),
     ({"messages": HELLO, "add_generation_prompt": True, "continue_final_message": True}, "continue_final_message")],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_bad_tokenize(http: httpx.Client, fields: dict[str, Any], param: str) -> None:
    assert names(refused(http.post("/tokenize", json={"model": MODEL, **fields})), param)


@pytest.mark.parametrize("tokens", [None, "a", [-1], [10**6], ["a"], [1.5]], ids=str)
def test_bad_detokenize(http: httpx.Client, tokens: Any) -> None:
    assert refused(http.post("/detokenize", json={"model": MODEL, "tokens": tokens}))["param"] == "tokens"


def test_other_models_are_unknown(http: httpx.Client) -> None:
    refused(http.post("/tokenize", json={"model": "other", "prompt": "a"}), 404)
    refused(http.post("/detokenize", json={"model": "other", "tokens": [1]}), 404)


def test_counting_may_go_beyond_the_context(http: httpx.Client) -> None:
    assert tokenize(http, prompt="a fox " * 1500)["count"] > 1024
