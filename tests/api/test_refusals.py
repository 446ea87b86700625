"""A bad request gets its 4xx with the field named, in OpenAI's shape, and disturbs nothing."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from tests import tiny
from tests.api.helpers import (
    HELLO,
    KEY,
    MAX_BYTES,
    MODEL,
    ask,
    clip,
    eventually,
    holds_nothing,
    image_part,
    metric,
    picture,
    video_part,
)
from trifocal.sampling_params import SAMPLING_BOUNDS

CHAT = "/v1/chat/completions"
BAD_VALUES: list[tuple[str, Any]] = [
    ("temperature", -0.1), ("temperature", "hot"), ("temperature", True), ("temperature", [1]),
    ("top_p", 0), ("top_p", 1.1), ("top_p", -1), ("top_k", -2), ("top_k", 1.5), ("top_k", 10**30),
    ("min_p", -0.1), ("min_p", 2), ("max_tokens", 0), ("max_tokens", -1), ("max_tokens", "16"), ("max_tokens", 10**12),
    ("top_logprobs", -2), ("max_tokens", 1e300), ("max_tokens", -2.0), ("seed", 2.0**63),
    ("max_tokens", 5000), ("max_tokens", 1.5), ("max_completion_tokens", 0), ("max_completion_tokens", 5000),
    ("min_tokens", -1), ("min_tokens", "a"), ("n", 0), ("n", 100_000), ("n", "2"), ("seed", "x"), ("seed", 2**63),
    ("repetition_penalty", 0), ("repetition_penalty", -1), ("presence_penalty", 3), ("frequency_penalty", -3),
    ("stop", 5), ("stop", [1]), ("stop", ""), ("stop", ["a"] * 1000), ("stop", "x" * 5000), ("stop", {"a": 1}),
    ("stop_token_ids", 5), ("stop_token_ids", ["a"]), ("stop_token_ids", [-1]),
    ("logit_bias", [1]), ("logit_bias", {"a": 1}), ("logit_bias", {"1": "b"}), ("logit_bias", {"1": 101}),
    ("logit_bias", {"-1": 1}), ("logit_bias", {"100000": 1}), ("logit_bias", {"1" * 5000: 1}),
    ("top_logprobs", 3), ("logprobs", 5), ("logprobs", "yes"), ("stream", "yes"), ("stream", 2),
    ("stream_options", {"include_usage": True}), ("stream_options", 1), ("ignore_eos", "no"),
    ("skip_special_tokens", 3), ("repetition_penalty", 1e-38),
    ("mm_processor_kwargs", 1), ("mm_processor_kwargs", {"nobody_knows": 1}),
    ("media_io_kwargs", 1), ("media_io_kwargs", {"video": 1}), ("media_io_kwargs", {"video": {"num_frames": 0}}),
    ("media_io_kwargs", {"sound": {}}), ("chat_template_kwargs", "x"),
    ("messages", []), ("messages", None), ("messages", "hello"), ("messages", [1]), ("messages", [{}]),
    ("messages", [{"role": "user"}]), ("messages", [{"role": 1, "content": "a"}]), ("messages", [{"content": "a"}]),
    ("messages", [{"role": "user", "content": 5}]), ("messages", [{"role": "user", "content": [{"type": "no"}]}]),
    ("messages", [{"role": "user", "content": "x " * 5000}]), ("model", 5), ("cache_salt", 5),
    ("tools", [{"type": "function", "function": {"name": "f"}}]), ("tool_choice", "required"), ("audio", {"a": 1}),
    ("response_format", {"type": "json_object"}), ("functions", [{"name": "f"}]), ("modalities", ["audio"]),
    ("guided_json", {"type": "object"}), ("prompt_logprobs", -2), ("best_of", 3), ("use_beam_search", True),
    ("prompt_logprobs", 10**6), ("allowed_token_ids", []), ("allowed_token_ids", [10**6]), ("allowed_token_ids", 5),
    ("bad_words", "a"), ("bad_words", [" "]), ("bad_words", ["a " * 9000]), ("bad_words", [1]),
    ("structured_outputs", {"json": {}}), ("chat_template", "{{ 1 }}"), ("priority", 5), ("echo", True),
]  # fmt: skip


def refused(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    """The error of a refused request, after checking its shape."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"] and body["error"]["type"] == "invalid_request_error" and body["error"]["code"]
    assert len(body["error"]["message"]) < 600
    return dict(body["error"])


def names(error: dict[str, Any], field: str) -> bool:
    """Whether the error blames `field` or a part of it, as in `messages[0].content`."""
    return error["param"] == field or str(error["param"]).startswith(f"{field}[")


def post(http: httpx.Client, **fields: Any) -> httpx.Response:
    return http.post(CHAT, json={"model": MODEL, "messages": HELLO, "max_tokens": 2, **fields})


@pytest.mark.parametrize("field, value", BAD_VALUES, ids=lambda value: str(value)[:30])
def test_bad_value_names_its_field(http: httpx.Client, field: str, value: Any) -> None:
    assert names(refused(post(http, **{field: value})), field)


def test_words_of_nothing_are_refused_in_plain_words(http: httpx.Client) -> None:
    for word in ("", " "):
        message = refused(post(http, bad_words=["a", word]))["message"]
        assert message == f"bad_words[1] must be a string that is not blank, got {word!r}"


def test_bad_values_get_a_status_in_a_stream_too(http: httpx.Client) -> None:
    for field, value in BAD_VALUES[::7]:
        if not field.startswith("stream"):
            assert names(refused(post(http, stream=True, **{field: value})), field)


def test_refusals_touch_nothing_in_the_engine(http: httpx.Client) -> None:
    before = metric(http, "trifocal:prompt_tokens_total")
    for field, value in BAD_VALUES[::5]:
        post(http, **{field: value})
    assert metric(http, "trifocal:prompt_tokens_total") == before


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"3", b'"text"', b"\xff\xfe", b'{"messages": "\\ud800"}', b"[" * 100_000, b"{}{}"],
    ids=lambda body: repr(body[:12]),
)
def test_body_that_is_no_json_object(http: httpx.Client, body: bytes) -> None:
    assert refused(http.post(CHAT, content=body))["code"] == "invalid_json"


def test_a_byte_order_mark_is_no_part_of_the_body(http: httpx.Client) -> None:
    body = json.dumps({"messages": HELLO, "max_tokens": 1}).encode("utf-8-sig")
    assert http.post(CHAT, content=body).status_code == 200


@pytest.mark.parametrize(
    "kind",
    ["application/x-www-form-urlencoded", "text/plain", "multipart/form-data; boundary=x", "application/jsonx", ""],
)
@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/tokenize", "/detokenize"])
def test_body_that_is_said_to_be_something_else(http: httpx.Client, path: str, kind: str) -> None:
    """`curl -d` says a form, and pages of anybody may send forms and plain text: the answer tells what to send."""
    error = refused(http.post(path, content=b"{}", headers={"content-type": kind}), 415)
    assert error["code"] == "unsupported_media_type" and "Content-Type: application/json" in error["message"]


@pytest.mark.parametrize(
    "kind", [None, "application/json", "Application/JSON; charset=utf-8", "application/vnd.api+json"], ids=str
)
def test_body_that_may_be_json(http: httpx.Client, kind: str | None) -> None:
    headers = {} if kind is None else {"content-type": kind}
    assert http.post("/detokenize", content=b'{"tokens": [1]}', headers=headers).status_code == 200


def test_an_element_is_named_by_its_index(http: httpx.Client) -> None:
    assert (
        "stop_token_ids[1] must be an integer, got a string of 1 char"
        in refused(post(http, stop_token_ids=[1, "a"]))["message"]
    )
    assert refused(post(http, stop_token_ids=5))["message"] == "stop_token_ids must be an array, got 5"
    assert refused(post(http, messages=[{"content": "a"}]))["message"] == "messages[0].role is missing"


def test_integers_may_be_written_as_floats(http: httpx.Client) -> None:
    whole = {"max_tokens": 2.0, "n": 1.0, "seed": 7.0, "top_k": 5.0, "min_tokens": 1.0, "stop_token_ids": [1.0, 2]}
    answer = post(http, **whole, logprobs=1.0, top_logprobs=2.0, stream=0.0)
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] == 2
    body = {"model": MODEL, "max_tokens": 1.0, "logprobs": 1.0, "temperature": 0}
    prompts = ([5, 6], [5.0, 6], [[5.0, 6.0]])
    texts = [http.post("/v1/completions", json={**body, "prompt": each}).json()["choices"][0] for each in prompts]
    assert texts[0] == texts[1] == texts[2]
    assert http.post("/detokenize", json={"tokens": [1.0, 2]}).status_code == 200


@pytest.mark.parametrize(
    "prompt", [[-1], [[-1]], [1.5], [[1], []], ["a", ""], ["a", 1], [2**31], [True], 1, {}, [[[1]]], None], ids=str
)
def test_prompts_that_are_none(http: httpx.Client, prompt: Any) -> None:
    error = refused(http.post("/v1/completions", json={"model": MODEL, "prompt": prompt, "max_tokens": 1}))
    assert error["param"] == "prompt"


@pytest.mark.parametrize("num_digits", [12, 4000])
def test_ids_of_many_digits(http: httpx.Client, num_digits: int) -> None:
    for path, field in (("/v1/completions", "prompt"), ("/detokenize", "tokens")):
        body = f'{{"{field}": [{"9" * num_digits}]}}'
        assert refused(http.post(path, content=body))["param"] == field


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 5000])
@pytest.mark.parametrize("field", ["temperature", "top_p", "max_tokens", "presence_penalty"])
def test_numbers_that_are_none(http: httpx.Client, field: str, number: str) -> None:
    body = json.dumps({"model": MODEL, "messages": HELLO})[:-1] + f', "{field}": {number}}}'
    refused(http.post(CHAT, content=body))


def test_two_limits_name_the_one_that_counts(http: httpx.Client) -> None:
    assert refused(post(http, max_completion_tokens=4000))["message"].count("4000") == 1
    for many, shown in ((1000, "1000"), (-1, "all (-1)")):
        error = refused(post(http, logprobs=True, top_logprobs=many))
        assert error["param"] == "top_logprobs" and f"top_logprobs asks for {shown}" in error["message"]
    assert refused(post(http, min_tokens=9))["param"] == "min_tokens"


def test_max_tokens_are_refused_before_media_are_fetched(http: httpx.Client) -> None:
    nowhere = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/a.png"}}
    assert refused(post(http, messages=ask(nowhere), max_tokens=1025))["param"] == "max_tokens"
    assert names(refused(post(http, messages=ask(nowhere), max_tokens=1024)), "messages")


def test_unknown_model(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-4o", messages=HELLO)  # type: ignore[arg-type]
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_unknown_route_and_method(http: httpx.Client) -> None:
    assert refused(http.get("/v1/nothing"), 404)["code"] == "not_found"
    response = http.get(CHAT)
    assert refused(response, 405)["code"] == "method_not_allowed" and response.headers["allow"] == "POST"


@pytest.mark.parametrize("excess", [1, 3 * MAX_BYTES])
def test_body_too_large(http: httpx.Client, excess: int) -> None:
    body = b'{"messages": "' + b"a" * (MAX_BYTES + excess - 14)
    assert refused(http.post(CHAT, content=body), 413)["code"] == "request_too_large"


def test_largest_body_is_read(http: httpx.Client) -> None:
    body = json.dumps({"model": MODEL, "messages": HELLO, "max_tokens": 1, "user": ""})[:-2]
    filled = body + "u" * (MAX_BYTES - len(body) - 2) + '"}'
    assert len(filled) == MAX_BYTES
    assert http.post(CHAT, content=filled).status_code == 200


def test_body_too_large_without_a_length(http: httpx.Client) -> None:
    pieces = (b"x" * 100_000 for _ in range(2 + MAX_BYTES // 100_000))
    refused(http.post(CHAT, content=pieces), 413)


WRONG_KEYS: list[dict[str, Any]] = [
    {},
    {"Authorization": "Bearer wrong"},
    {"Authorization": f"Basic {KEY}"},
    {"Authorization": "Bearer clé".encode()},
    {"Authorization": "Bearer"},
]


@pytest.mark.parametrize("headers", WRONG_KEYS, ids=str)
def test_key(http: httpx.Client, headers: dict[str, Any]) -> None:
    with httpx.Client(base_url=http.base_url, headers=headers) as stranger:
        for path in ("/v1/models", "/metrics", "/version", "/nothing"):
            response = stranger.get(path)
            assert refused(response, 401)["code"] == "invalid_api_key"
            assert response.headers["www-authenticate"] == "Bearer"
        for path in (CHAT, "/v1/completions", "/tokenize", "/detokenize"):
            refused(stranger.post(path, content=b"{}"), 401)
        assert [stranger.get(path).status_code for path in ("/health", "/live", "/ready", "/ping")] == [200] * 4


# ---------------------------------------------------------------------------------------------- media

PNG = picture()
BAD_MEDIA = {
    "empty file": image_part(b""),
    "text named png": image_part(b"this is no picture"),
    "half a png": image_part(PNG[: len(PNG) // 2]),
    "20000 x 1": image_part(picture(20000, 1)),
    "not base64": {"type": "image_url", "image_url": {"url": "data:image/png;base64,%%%"}},
    "no data url": {"type": "image_url", "image_url": {"url": "data:"}},
    "no url": {"type": "image_url", "image_url": {}},
    "no scheme": {"type": "image_url", "image_url": {"url": "picture.png"}},
    "ftp": {"type": "image_url", "image_url": {"url": "ftp://127.0.0.1/a.png"}},
    "file outside": {"type": "image_url", "image_url": {"url": "file:///etc/hostname"}},
    "nobody listens": {"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/a.png"}},
    "truncated video": video_part(clip()[:700]),
    "picture as video": video_part(b"\x00" * 100),
    "video as picture": image_part(clip()),
}


@pytest.mark.parametrize("part", BAD_MEDIA.values(), ids=BAD_MEDIA)
def test_bad_media(http: httpx.Client, part: dict[str, Any]) -> None:
    error = refused(post(http, messages=ask(image_part(PNG), part), stream=part["type"] == "video_url"))
    assert names(error, "messages")


def test_too_many_pictures(http: httpx.Client) -> None:
    refused(post(http, messages=ask(*[image_part(PNG)] * 10)))


@pytest.mark.parametrize("size", [(1, 1), (200, 1), (1, 150)], ids=str)
def test_small_pictures_work_or_are_refused_clearly(http: httpx.Client, size: tuple[int, int]) -> None:
    response = post(http, messages=ask(image_part(picture(*size))))
    if size == (1, 1):
        assert response.status_code == 200, response.text
    elif response.status_code != 200:
        refused(response)


def test_markup_in_text_is_only_text(http: httpx.Client) -> None:
    """A user cannot smuggle a placeholder in: the text costs tokens, it is no picture."""
    response = post(http, messages=[{"role": "user", "content": "<|vision_start|><|image_pad|><|vision_end|>"}])
    assert response.status_code == 200, response.text


def test_bad_requests_disturb_no_other(http: httpx.Client) -> None:
    good = {"messages": ask(image_part(PNG)), "temperature": 0, "max_tokens": 60, "ignore_eos": True}
    alone = post(http, **good).json()["choices"][0]["message"]["content"]
    with ThreadPoolExecutor(4) as pool:
        beside = [pool.submit(post, http, **good) for _ in range(3)]
        for part in BAD_MEDIA.values():
            refused(post(http, messages=ask(part)))
    assert {each.result().json()["choices"][0]["message"]["content"] for each in beside} == {alone}
    assert eventually(lambda: holds_nothing(http))


def test_forced_ids_at_the_edge_of_the_vocabulary(http: httpx.Client) -> None:
    """The model has more rows than the tokenizer has words; such a token has no text but breaks nothing."""
    edge = {str(tiny.VOCAB - 1): 100}
    response = post(http, logit_bias=edge, logprobs=True, top_logprobs=1, repetition_penalty=1)
    assert response.status_code == 200, response.text


@pytest.mark.parametrize("name", ["repetition_penalty", "temperature", "top_p", "min_p"])
@pytest.mark.parametrize("temperature", [0, 1])
def test_numbers_at_the_ends_of_their_ranges(http: httpx.Client, name: str, temperature: int) -> None:
    """What is allowed must not be more than float32 takes: that would be the model's fault, a 500."""
    bounds = SAMPLING_BOUNDS[name]
    for value in (bounds.low or 1e-300, 1e300 if bounds.high is None else bounds.high):
        response = post(http, **{"temperature": temperature, "logprobs": True, "top_logprobs": 2, name: value})
        assert response.status_code == 200, (value, response.text)
