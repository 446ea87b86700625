"""POST /v1/completions: prompts of every form, streamed and whole."""

from __future__ import annotations

import json
from itertools import accumulate
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


# ---------------------------------------------------------------------------------------------- of the prompt


def test_an_echo_with_logprobs_has_those_of_the_prompt(http: httpx.Client) -> None:
    """The first token has none; the others have what the model gives for a prompt that ends before them."""
    ids = ids_of(http, PROMPT)
    [choice] = complete(http, echo=True, logprobs=2, max_tokens=3, repetition_penalty=1)["choices"]
    told = choice["logprobs"]
    assert [len(told[name]) for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")] == [
        len(ids) + 3
    ] * 4
    assert told["token_logprobs"][0] is told["top_logprobs"][0] is None
    assert "".join(told["tokens"]) == choice["text"], "nothing of this prompt is a half of a character"
    ends = [0, *accumulate(map(len, told["tokens"]))]
    assert told["text_offset"] == ends[:-1]
    for place in range(1, len(ids)):
        [next_one] = complete(http, ids[:place], logprobs=2, max_tokens=1, repetition_penalty=1)["choices"]
        [top] = next_one["logprobs"]["top_logprobs"]
        for name, logprob in top.items():
            assert told["top_logprobs"][place][name] == pytest.approx(logprob, abs=1e-4)
        assert told["top_logprobs"][place][told["tokens"][place]] == told["token_logprobs"][place]
    [plain] = complete(http, logprobs=2, max_tokens=3, repetition_penalty=1)["choices"]
    assert told["tokens"][len(ids) :] == plain["logprobs"]["tokens"]
    assert told["token_logprobs"][len(ids) :] == pytest.approx(plain["logprobs"]["token_logprobs"], abs=1e-4)


def test_the_prompt_alone(http: httpx.Client) -> None:
    """`max_tokens` 0 with an echo: what tasks of log-likelihoods ask for."""
    fields = {"echo": True, "max_tokens": 0}
    ids = ids_of(http, PROMPT)
    for prompt in (PROMPT, ids):
        answer = complete(http, prompt, **fields, logprobs=1)
        [choice] = answer["choices"]
        assert (choice["text"], choice["finish_reason"], len(choice["logprobs"]["tokens"])) == (
            PROMPT,
            "length",
            len(ids),
        )
        assert answer["usage"]["completion_tokens"] == 0
    [bare] = complete(http, **fields)["choices"]
    assert (bare["text"], bare["logprobs"], bare["prompt_logprobs"]) == (PROMPT, None, None)
    [longer] = complete(http, echo=True, logprobs=1)["choices"]
    count = len(ids)
    assert longer["logprobs"]["tokens"][:count] == choice["logprobs"]["tokens"]
    assert longer["logprobs"]["token_logprobs"][1:count] == pytest.approx(
        choice["logprobs"]["token_logprobs"][1:], abs=1e-4
    )
    body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 0}
    assert refused(http.post("/v1/completions", json=body))["param"] == "max_tokens"


def test_an_echo_tells_where_its_tokens_begin(http: httpx.Client) -> None:
    """Tokens within a character have its place, and the answer's first token follows on the text."""
    prompt = "go 🎉é!"
    [choice] = complete(http, prompt, echo=True, logprobs=0, max_tokens=1)["choices"]
    assert choice["logprobs"]["tokens"][3:9] == ["\N{REPLACEMENT CHARACTER}"] * 6, "a token for each byte"
    assert choice["logprobs"]["text_offset"] == [0, 1, 2, 3, 3, 3, 3, 4, 4, 5, 6]


def test_prompt_logprobs(http: httpx.Client) -> None:
    """vLLM's form, of each prompt and on each of its choices."""
    fields = {"echo": True, "logprobs": 2, "max_tokens": 1, "n": 2, "temperature": 1, "seed": 1}
    answer = complete(http, [PROMPT, "How many red"], **fields, prompt_logprobs=1)
    for choice, prompt in zip(answer["choices"], [PROMPT, PROMPT, "How many red", "How many red"], strict=True):
        ids, told = ids_of(http, prompt), choice["prompt_logprobs"]
        assert len(told) == len(ids) and told[0] is None
        for place in range(1, len(ids)):
            mine, first = told[place][str(ids[place])], next(iter(told[place]))
            assert first == str(ids[place]) and len(told[place]) == (1 if mine["rank"] == 1 else 2)
            assert mine["decoded_token"] == choice["logprobs"]["tokens"][place]
            assert mine["logprob"] == choice["logprobs"]["token_logprobs"][place]
            [best] = [each for each in told[place].values() if each["rank"] == 1]
            assert best["logprob"] == max(choice["logprobs"]["top_logprobs"][place].values())
    [alone] = complete(http, prompt_logprobs=0, max_tokens=0)["choices"]
    assert (alone["text"], alone["logprobs"], len(alone["prompt_logprobs"])) == ("", None, len(ids_of(http, PROMPT)))
    [plain] = complete(http, max_tokens=1)["choices"]
    assert plain["prompt_logprobs"] is None


@pytest.mark.parametrize("fields", [{}, {"n": 3}, {"max_tokens": 0}], ids=str)
def test_an_echo_is_streamed_with_its_logprobs(http: httpx.Client, fields: dict[str, Any]) -> None:
    body = {"model": MODEL, "prompt": [PROMPT, "How many red"], **GREEDY, "echo": True, "logprobs": 1, **fields}
    whole = complete(http, **{name: value for name, value in body.items() if name != "model"})
    response = http.post("/v1/completions", json={**body, "stream": True})
    chunks = [json.loads(line.removeprefix("data: ")) for line in response.text.split("\n\n") if "{" in line]
    for choice in whole["choices"]:
        mine = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == choice["index"]]
        assert "".join(piece["text"] for piece in mine) == choice["text"]
        for name in ("tokens", "text_offset"):
            assert [each for piece in mine for each in piece["logprobs"][name]] == choice["logprobs"][name]
        logprobs = [each for piece in mine for each in piece["logprobs"]["token_logprobs"]]
        assert logprobs[0] is None
        assert logprobs[1:] == pytest.approx(choice["logprobs"]["token_logprobs"][1:], abs=1e-4)
    asked = {"model": MODEL, "prompt": PROMPT, "prompt_logprobs": 0, "stream": True}
    assert refused(http.post("/v1/completions", json=asked))["param"] == "prompt_logprobs"


def test_more_of_the_prompt_than_is_allowed_is_refused_by_the_name_that_was_used(http: httpx.Client) -> None:
    for fields, param in (
        ({"echo": True, "logprobs": 21, "max_tokens": 0}, "logprobs"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
    ):
        assert (
            refused(http.post("/v1/completions", json={"model": MODEL, "prompt": PROMPT, **fields}))["param"] == param
        )


def test_one_bad_prompt_of_several_refuses_all(http: httpx.Client) -> None:
    body = {"model": MODEL, "prompt": [PROMPT, "x " * 5000], "max_tokens": 2}
    assert refused(http.post("/v1/completions", json=body))["param"] == "prompt"
