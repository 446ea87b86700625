"""POST /v1/completions: prompts of every form, streamed and whole."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest

from tests.api.helpers import MODEL
from tests.api.test_refusals import refused

PROMPT = "The quick brown fox"
GREEDY = {"temperature": 0, "max_tokens": 8, "ignore_eos": True}


def complete(http: httpx.Client, prompt: Any = PROMPT, **fields: Any) -> dict[str, Any]:
    response = http.post("/v1/completions", json={"model": MODEL, "prompt": prompt, **GREEDY, **fields})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def texts(answer: dict[str, Any]) -> list[str]:
    return [choice["text"] for choice in answer["choices"]]


def ids_of(http: httpx.Client, text: str) -> list[int]:
    return list(http.post("/tokenize", json={"model": MODEL, "prompt": text}).json()["tokens"])


def test_forms_of_a_prompt(http: httpx.Client) -> None:
    ids = ids_of(http, PROMPT)
    [text] = texts(complete(http))
    assert texts(complete(http, ids)) == texts(complete(http, [PROMPT])) == texts(complete(http, [ids])) == [text]
    [other] = texts(complete(http, "How many circles"))
    answer = complete(http, [PROMPT, "How many circles", ids], n=1)
    assert texts(answer) == [text, other, text]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert answer["usage"]["completion_tokens"] == 24
    assert answer["usage"]["prompt_tokens"] == 2 * len(ids) + len(ids_of(http, "How many circles"))


def test_several_prompts_with_several_choices(http: httpx.Client) -> None:
    fields = {"temperature": 1.2, "seed": 4, "n": 2}
    both = texts(complete(http, [PROMPT, "How many"], **fields))
    assert both == texts(complete(http, PROMPT, **fields)) + texts(complete(http, "How many", **fields))


def test_what_is_not_available_is_null(http: httpx.Client) -> None:
    answer = complete(http)
    assert answer["service_tier"] is answer["system_fingerprint"] is None
    [choice] = answer["choices"]
    assert choice["token_ids"] is choice["prompt_logprobs"] is choice["stop_reason"] is None


def test_max_tokens_are_clipped_to_the_rest_of_the_context(http: httpx.Client) -> None:
    answer = complete(http, [5] * 1020, max_tokens=1024)
    assert answer["usage"]["completion_tokens"] == 4 and answer["choices"][0]["finish_reason"] == "length"
    body = {"model": MODEL, "prompt": [5] * 1024, "max_tokens": 1}
    error = refused(http.post("/v1/completions", json=body))
    assert (error["param"], error["code"]) == ("prompt", "context_length_exceeded")


def test_sixteen_tokens_by_default(http: httpx.Client) -> None:
    assert complete(http, max_tokens=None)["usage"]["completion_tokens"] == 16


@pytest.mark.parametrize("fields", [{}, {"n": 2}, {"logprobs": 2}, {"echo": True}, {"stop": ["a", "e"]}], ids=str)
def test_stream_equals_whole_answer(client: openai.OpenAI, fields: dict[str, Any]) -> None:
    body: dict[str, Any] = {"model": MODEL, "prompt": [PROMPT, "How many red"], "extra_body": {**GREEDY, **fields}}
    whole = client.completions.create(**body)
    chunks = list(client.completions.create(**body, stream=True, stream_options={"include_usage": True}))
    *pieces, last = chunks
    assert last.usage is not None and whole.usage is not None
    assert last.usage.completion_tokens == whole.usage.completion_tokens
    for choice in whole.choices:
        mine = [piece.choices[0] for piece in pieces if piece.choices[0].index == choice.index]
        assert "".join(piece.text for piece in mine) == choice.text
        assert mine[-1].finish_reason == choice.finish_reason
        if choice.logprobs is not None:
            whole_lists, streamed = choice.logprobs, [piece.logprobs for piece in mine]
            assert whole_lists.tokens == [token for part in streamed for token in part.tokens]
            # A batch of other size rounds otherwise, by some units in the last place.
            numbers = [number for part in streamed for number in part.token_logprobs]
            assert whole_lists.token_logprobs == pytest.approx(numbers, abs=1e-4)
            rivals = [top for part in streamed for top in part.top_logprobs]
            assert [list(top) for top in whole_lists.top_logprobs] == [list(top) for top in rivals]


def test_logprobs(http: httpx.Client) -> None:
    [choice] = complete(http, logprobs=2, repetition_penalty=1)["choices"]
    logprobs = choice["logprobs"]
    assert [len(logprobs[name]) for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")] == [8] * 4
    assert logprobs["text_offset"][0] == 0 and logprobs["text_offset"] == sorted(logprobs["text_offset"])
    for token, logprob, top in zip(
        logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True
    ):
        assert top[token] == logprob == max(top.values())


def test_echo(http: httpx.Client) -> None:
    plain, echoed = texts(complete(http)), texts(complete(http, echo=True))
    assert echoed == [PROMPT + plain[0]]
    assert texts(complete(http, ids_of(http, PROMPT), echo=True)) == echoed


@pytest.mark.parametrize(
    "field, value",
    [("prompt", None), ("prompt", ""), ("prompt", []), ("prompt", [[]]), ("prompt", 5), ("prompt", [1, "a"]),
     ("prompt", [-1]), ("prompt", [10**9]), ("prompt", [True]), ("prompt", "x " * 5000), ("prompt", ["a"] * 2000),
     ("prompt", {"text": "a"}), ("suffix", "end"), ("best_of", 2), ("logprobs", -1), ("logprobs", 100),
     ("logprobs", True), ("max_tokens", 0), ("max_tokens", 1025), ("echo", "yes"), ("prompt_embeds", "AAAA")],
    ids=lambda value: str(value)[:24],
)  # fmt: skip
def test_bad_value_names_its_field(http: httpx.Client, field: str, value: Any) -> None:
    body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 2, field: value}
    assert refused(http.post("/v1/completions", json=body))["param"] == field


def test_echo_with_logprobs_is_refused(http: httpx.Client) -> None:
    body = {"model": MODEL, "prompt": PROMPT, "echo": True, "logprobs": 1}
    error = refused(http.post("/v1/completions", json=body))
    assert (error["param"], error["code"]) == ("echo", "unsupported_parameter")


def test_one_bad_prompt_of_several_refuses_all(http: httpx.Client) -> None:
    body = {"model": MODEL, "prompt": [PROMPT, "x " * 5000], "max_tokens": 2}
    assert refused(http.post("/v1/completions", json=body))["param"] == "prompt"
