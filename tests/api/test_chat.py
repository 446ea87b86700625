"""Every request field of chat completions does what it says, and a stream says what a whole answer says."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests import tiny
from tests.api.helpers import HELLO, KEY, MODEL, Server, ask, clip, data_url, image_part, picture, video_part

GREEDY = {"temperature": 0, "max_tokens": 12, "ignore_eos": True}
END = tiny.token_ids()["<|im_end|>"]
PAD = tiny.token_ids()["<|vision_pad|>"]
LETTER = 65  # some ordinary token: the tests only force it and ask for its text


def chat(http: httpx.Client, messages: list[dict[str, Any]] | None = None, **fields: Any) -> dict[str, Any]:
    response = http.post("/v1/chat/completions", json={"model": MODEL, "messages": messages or HELLO, **fields})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def text_of(http: httpx.Client, **fields: Any) -> str:
    content = chat(http, **{**GREEDY, **fields})["choices"][0]["message"]["content"]
    assert isinstance(content, str)
    return content


def test_answer_has_openais_shape(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=6, extra_body={"ignore_eos": True})
    assert answer.id.startswith("chatcmpl-")
    assert (answer.object, answer.model) == ("chat.completion", MODEL)
    [choice] = answer.choices
    assert (choice.index, choice.message.role, choice.finish_reason) == (0, "assistant", "length")
    assert choice.message.content and choice.logprobs is None
    assert answer.usage is not None and answer.usage.completion_tokens == 6
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 6


def test_what_is_not_available_is_null_in_a_whole_answer(http: httpx.Client) -> None:
    answer = chat(http, max_tokens=2, ignore_eos=True)
    [choice] = answer["choices"]
    message = choice["message"]
    absent = {"refusal", "annotations", "audio", "function_call", "tool_calls", "reasoning"}
    assert set(message) == {"role", "content", *absent} and not any(message[name] for name in absent)
    assert set(choice) == {"index", "message", "logprobs", "finish_reason", "stop_reason", "token_ids"}
    assert choice["token_ids"] is choice["stop_reason"] is choice["logprobs"] is None
    absent = {"service_tier", "system_fingerprint", "prompt_logprobs"}
    assert set(answer) == {"id", "object", "created", "model", "choices", "usage", *absent}
    assert {answer[name] for name in absent} == {None}


def test_a_piece_of_a_stream_leaves_out_what_is_absent(http: httpx.Client) -> None:
    first, second, *_, last = streamed(http, max_tokens=3, ignore_eos=True)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert set(second["choices"][0]["delta"]) == {"content"}
    for chunk in (first, second, last):
        assert set(chunk) == {"id", "object", "created", "model", "choices"}
    assert set(second["choices"][0]) == {"index", "delta", "logprobs", "finish_reason", "token_ids"}
    assert set(last["choices"][0]) == {"index", "delta", "logprobs", "finish_reason", "token_ids", "stop_reason"}


def streamed(http: httpx.Client, **fields: Any) -> list[dict[str, Any]]:
    """The chunks of a stream."""
    body = {"model": MODEL, "messages": HELLO, "stream": True, **fields}
    with http.stream("POST", "/v1/chat/completions", json=body) as response:
        events = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert events.pop() == "[DONE]"
    return [json.loads(event) for event in events]


@pytest.mark.parametrize("fields", [{}, {"logprobs": True, "top_logprobs": 2, "n": 2}], ids=str)
def test_a_client_that_checks_every_type_takes_the_answers(server: Server, fields: dict[str, Any]) -> None:
    """The `openai` package validates answers with its types if it is told to."""
    ask_for: Any = {"model": MODEL, "messages": HELLO, "max_tokens": 3, **fields}
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, _strict_response_validation=True) as strict:
        whole = strict.chat.completions.create(**ask_for)
        assert whole.choices[0].message.tool_calls is None and whole.system_fingerprint is None
        usage = {"include_usage": True, "continuous_usage_stats": True}
        chunks = list(strict.chat.completions.create(**ask_for, stream=True, stream_options=usage))
        assert chunks[-1].usage and chunks[-1].usage.total_tokens == whole.usage.total_tokens  # type: ignore[union-attr]
        assert strict.completions.create(model=MODEL, prompt="a", max_tokens=2, logprobs=1).choices[0].text
        assert strict.models.retrieve(MODEL).id == MODEL == strict.models.list().data[0].id


STREAMED_FIELDS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.3, "seed": 11, "max_tokens": 30},
    {"n": 3, "temperature": 1.0, "seed": 5},
    {"stop": ["e", "o", "a"], "max_tokens": 40},
    {"logprobs": True, "top_logprobs": 2},
    {"logit_bias": {str(END): 100}, "ignore_eos": False},
    {"skip_special_tokens": False, "logit_bias": {str(PAD): 100}},
    {"repetition_penalty": 1.5, "presence_penalty": 1, "frequency_penalty": 0.5},
    {"top_k": 5, "top_p": 0.9, "min_p": 0.01, "temperature": 1, "seed": 3, "max_tokens": 64},
]


@pytest.mark.parametrize("fields", STREAMED_FIELDS, ids=lambda fields: "+".join(fields) or "plain")
def test_stream_equals_whole_answer(client: openai.OpenAI, fields: dict[str, Any]) -> None:
    body: dict[str, Any] = {"model": MODEL, "messages": HELLO, "extra_body": {**GREEDY, **fields}}
    whole = client.chat.completions.create(**body)
    chunks = list(client.chat.completions.create(**body, stream=True, stream_options={"include_usage": True}))
    assert len({chunk.id for chunk in chunks}) == 1
    *pieces, last = chunks
    assert last.choices == [] and last.usage == whole.usage
    assert all(piece.usage is None for piece in pieces)
    for choice in whole.choices:
        mine = [piece.choices[0] for piece in pieces if piece.choices[0].index == choice.index]
        assert mine[0].delta.role == "assistant" and all(piece.delta.role is None for piece in mine[1:])
        assert "".join(piece.delta.content or "" for piece in mine) == choice.message.content
        assert [piece.finish_reason for piece in mine if piece.finish_reason] == [choice.finish_reason]
        if choice.logprobs is not None:
            tokens = [token for piece in mine if piece.logprobs for token in piece.logprobs.content or []]
            whole_tokens = choice.logprobs.content or []
            assert [token.bytes for token in tokens] == [token.bytes for token in whole_tokens]
            # A batch of other size rounds otherwise, by some units in the last place.
            assert [t.logprob for t in tokens] == pytest.approx([t.logprob for t in whole_tokens], abs=1e-4)


def test_stream_is_server_sent_events(http: httpx.Client) -> None:
    body = {"model": MODEL, "messages": HELLO, "max_tokens": 3, "ignore_eos": True, "stream": 1}
    with http.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines) and lines[-1] == "data: [DONE]"
    assert "usage" not in lines[0]


def test_running_usage_counts_up(client: openai.OpenAI) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    stream = client.chat.completions.create(
        model=MODEL, messages=HELLO, stream=True, extra_body={**GREEDY, "stream_options": options}
    )
    counts = [chunk.usage.completion_tokens for chunk in stream if chunk.usage is not None]
    assert counts == sorted(counts) and counts[-1] == 12 and len(counts) > 3
    assert counts[0] == 0 < counts[1], "the role comes before any token"


def test_all_roles_come_before_any_token(http: httpx.Client) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = streamed(http, **GREEDY, n=3, stream_options=options)
    assert [chunk["choices"][0]["index"] for chunk in chunks[:3]] == [0, 1, 2]
    assert [chunk["choices"][0]["delta"].get("role") for chunk in chunks[:4]] == ["assistant"] * 3 + [None]
    usages = [chunk["usage"] for chunk in chunks]
    assert [usage["completion_tokens"] for usage in usages[:3]] == [0, 0, 0] and usages[-1]["completion_tokens"] == 36
    assert all(usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] for usage in usages)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_max_tokens(http: httpx.Client, name: str) -> None:
    answer = chat(http, ignore_eos=True, **{name: 7})
    assert answer["usage"]["completion_tokens"] == 7 and answer["choices"][0]["finish_reason"] == "length"


def test_max_completion_tokens_wins(http: httpx.Client) -> None:
    assert chat(http, ignore_eos=True, max_tokens=3, max_completion_tokens=5)["usage"]["completion_tokens"] == 5


def test_no_limit_means_the_rest_of_the_context(http: httpx.Client) -> None:
    answer = chat(http, ignore_eos=True, temperature=0)
    assert answer["usage"]["total_tokens"] == 1024 and answer["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_more_than_the_rest_of_the_context_is_clipped(http: httpx.Client, name: str) -> None:
    answer = chat(http, ignore_eos=True, temperature=0, **{name: 1024})
    assert answer["usage"]["total_tokens"] == 1024 and answer["choices"][0]["finish_reason"] == "length"


def test_null_means_default(http: httpx.Client) -> None:
    names = (
        "top_p", "top_k", "min_p", "stream", "stream_options", "repetition_penalty", "presence_penalty", "stop", "n",
        "frequency_penalty", "stop_token_ids", "seed", "logprobs", "top_logprobs", "logit_bias", "min_tokens",
        "skip_special_tokens", "mm_processor_kwargs", "media_io_kwargs", "chat_template_kwargs", "cache_salt",
        "add_generation_prompt", "max_completion_tokens", "tools", "tool_choice", "response_format", "user",
        "include_stop_str_in_output",
    )  # fmt: skip
    assert text_of(http, **dict.fromkeys(names)) == text_of(http)


def test_the_seeds_client(http: httpx.Client) -> None:
    """The payload of the script that users of vLLM have, literally."""
    answer = chat(
        http, ask(image_part(picture())), max_tokens=16, temperature=0, ignore_eos=False, stream=False, top_k=-1,
        top_p=1, stop_token_ids=None, repetition_penalty=1.0,
    )  # fmt: skip
    assert answer["choices"][0]["message"]["role"] == "assistant"


def test_seed_repeats_and_differs(http: httpx.Client) -> None:
    texts = [text_of(http, temperature=1.5, seed=seed, max_tokens=20) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}], ids=str)
def test_narrow_sampling_is_greedy(http: httpx.Client, narrow: dict[str, Any]) -> None:
    hot = {"temperature": 2.0, "seed": 9}
    assert text_of(http, **hot) != text_of(http)
    assert text_of(http, **hot, **narrow) == text_of(http)


def test_default_sampling_comes_from_the_checkpoint(http: httpx.Client) -> None:
    """generation_config.json of the tiny checkpoint asks for a temperature near zero."""
    assert len({text_of(http, temperature=None, max_tokens=20) for _ in range(3)}) == 1


@pytest.mark.parametrize("name, value", [("repetition_penalty", 3), ("presence_penalty", 2), ("frequency_penalty", 2)])
def test_penalties_break_a_loop(http: httpx.Client, name: str, value: float) -> None:
    loop = {"logit_bias": {str(LETTER): 8, str(LETTER + 1): 7}, "max_tokens": 20, "repetition_penalty": 1}
    assert text_of(http, **loop) != text_of(http, **{**loop, name: value})


def test_allowed_tokens_and_bad_words(http: httpx.Client) -> None:
    """By both routes; a word is banned as it begins and as it goes on."""
    loop = {**GREEDY, "logit_bias": {str(LETTER): 100}, "repetition_penalty": 1}
    letter = text_of(http, **loop)[:1]
    assert text_of(http, **loop) == letter * 12
    assert set(text_of(http, allowed_token_ids=[LETTER, LETTER + 1])) <= {letter, chr(ord(letter) + 1)}
    for route, source in (("chat/completions", {"messages": HELLO}), ("completions", {"prompt": "hello"})):
        body = {"model": MODEL, **source, **loop, "bad_words": [letter]}
        [choice] = http.post(f"/v1/{route}", json=body).json()["choices"]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
        assert text and letter not in text
        one = {"model": MODEL, **source, **GREEDY, "allowed_token_ids": [LETTER]}
        [choice] = http.post(f"/v1/{route}", json=one).json()["choices"]
        assert (choice["message"]["content"] if "message" in choice else choice["text"]) == letter * 12


@pytest.mark.parametrize("as_list", [False, True])
def test_stop_string(http: httpx.Client, as_list: bool) -> None:
    text = text_of(http, max_tokens=30)
    stop = text[8:10]
    end = text.index(stop)
    for included in (False, True):
        [choice] = chat(
            http, **{**GREEDY, "max_tokens": 30}, stop=[stop, "never so"] if as_list else stop,
            include_stop_str_in_output=included,
        )["choices"]  # fmt: skip
        assert choice["message"]["content"] == text[: end + len(stop) * included]
        assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)


def test_stop_token_ids(http: httpx.Client) -> None:
    answer = chat(http, **GREEDY, logit_bias={str(LETTER): 100}, stop_token_ids=[LETTER])
    [choice] = answer["choices"]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", LETTER)
    assert answer["usage"]["completion_tokens"] == 1 and choice["message"]["content"] == ""


def test_ignore_eos_and_min_tokens(http: httpx.Client) -> None:
    eager = {"temperature": 0, "max_tokens": 9, "logit_bias": {str(END): 100}}
    stopped, ignoring, patient = (
        chat(http, **eager),
        chat(http, **eager, ignore_eos=True),
        chat(http, **eager, min_tokens=5),
    )
    assert stopped["usage"]["completion_tokens"] == 1 and stopped["choices"][0]["finish_reason"] == "stop"
    assert stopped["choices"][0]["stop_reason"] is None, "the end of a turn is no stop id that was asked for"
    assert ignoring["usage"]["completion_tokens"] == 9 and ignoring["choices"][0]["finish_reason"] == "length"
    assert patient["usage"]["completion_tokens"] == 6 and patient["choices"][0]["finish_reason"] == "stop"


def test_n_choices_differ(http: httpx.Client) -> None:
    answer = chat(http, n=4, temperature=1.5, seed=1, max_tokens=10, ignore_eos=True)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert len({choice["message"]["content"] for choice in answer["choices"]}) == 4
    assert answer["usage"]["completion_tokens"] == 40


def test_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=HELLO, logprobs=True, top_logprobs=3, extra_body=GREEDY | {"repetition_penalty": 1}
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None and len(logprobs.content) == 12
    for token in logprobs.content:
        rivals = [rival.logprob for rival in token.top_logprobs]
        assert len(rivals) == 3 and rivals == sorted(rivals, reverse=True)
        assert token.logprob == rivals[0] <= 0  # greedy, so the chosen token is the likeliest
    spelled = b"".join(bytes(token.bytes or []) for token in logprobs.content)
    assert spelled.decode(errors="replace") == answer.choices[0].message.content


def test_logprobs_without_rivals(http: httpx.Client) -> None:
    content = chat(http, **GREEDY, logprobs=True)["choices"][0]["logprobs"]["content"]
    assert len(content) == 12 and all(token["top_logprobs"] == [] for token in content)


def test_skip_special_tokens(http: httpx.Client) -> None:
    forced = {"logit_bias": {str(PAD): 100}, "max_tokens": 2, "repetition_penalty": 1}
    assert text_of(http, **forced) == ""
    assert text_of(http, **forced, skip_special_tokens=False) == "<|vision_pad|>" * 2


def prompt_tokens(http: httpx.Client, messages: Iterable[dict[str, Any]], **fields: Any) -> int:
    return int(chat(http, list(messages), max_tokens=1, **fields)["usage"]["prompt_tokens"])


def test_mm_processor_kwargs(http: httpx.Client) -> None:
    messages = ask(image_part(picture(224, 224)))
    for side in (112, 112.0):  # whole numbers may be written with a point, here as everywhere
        smaller = {"max_pixels": side * side, "min_pixels": 28 * 28}
        assert prompt_tokens(http, messages) - prompt_tokens(http, messages, mm_processor_kwargs=smaller) == 64 - 16


def test_options_of_one_part(http: httpx.Client) -> None:
    """`max_pixels` and the like beside a URL or with it are for that picture alone."""
    part = image_part(picture(224, 224))
    smaller = {"max_pixels": 112 * 112, "min_pixels": 28 * 28}
    both, beside = ask(part, part), ask(part, {**part, **smaller})
    inside = ask(part, {**part, "image_url": {**part["image_url"], **smaller}})
    assert [prompt_tokens(http, both) - prompt_tokens(http, other) for other in (beside, inside)] == [64 - 16] * 2


def test_media_io_kwargs(http: httpx.Client) -> None:
    """Four tokens for a pair of frames of 64 x 64; a clip of one file, and as a list of frames."""
    frames = ",".join(data_url(picture(64, 64, seed)).partition(",")[2] for seed in range(8))
    for url in (data_url(clip(8, 64), "video/mp4"), f"data:video/jpeg;base64,{frames}"):
        messages = ask({"type": "video_url", "video_url": {"url": url}})
        eight, four = (
            prompt_tokens(http, messages, media_io_kwargs={"video": {"num_frames": count}}) for count in (8, 4.0)
        )
        assert eight - four == 2 * 4


def test_chat_template_kwargs(http: httpx.Client) -> None:
    messages = ask(image_part(picture()))
    assert prompt_tokens(http, messages, chat_template_kwargs={"add_vision_id": True}) > prompt_tokens(http, messages)


def test_continue_final_message(http: httpx.Client) -> None:
    begun = [*HELLO, {"role": "assistant", "content": "The quick brown"}]
    plain = prompt_tokens(http, begun)
    assert prompt_tokens(http, begun, continue_final_message=True) < prompt_tokens(
        http, begun, add_generation_prompt=False
    )
    assert prompt_tokens(http, begun, add_generation_prompt=False) < plain


def test_cached_tokens_and_cache_salt(http: httpx.Client) -> None:
    long = [{"role": "user", "content": "The dog looks at the fox. " * 10}]

    def cached(**fields: Any) -> int:
        return int(chat(http, long, max_tokens=1, **fields)["usage"]["prompt_tokens_details"]["cached_tokens"])

    assert cached(cache_salt="mine") == 0
    assert cached(cache_salt="mine") >= 16
    assert cached(cache_salt="yours") == 0


def test_images_videos_and_files(http: httpx.Client, media_folder: Path) -> None:
    data = picture(112, 112)
    (media_folder / "picture.png").write_bytes(data)
    file = {"type": "image_url", "image_url": {"url": f"file://{media_folder}/picture.png"}}
    base = prompt_tokens(http, ask())
    one = prompt_tokens(http, ask(image_part(data))) - base
    assert one == 16 + 2  # 4 x 4 merged patches between two markers
    assert prompt_tokens(http, ask(file)) - base == one
    assert prompt_tokens(http, ask(image_part(data), file, image_part(picture(56, 56)))) - base == 3 * one - 16 + 4
    assert prompt_tokens(http, ask(video_part(clip()))) - base > 4


def test_answers_depend_on_the_picture(http: httpx.Client) -> None:
    def look(seed: int) -> str:
        return str(chat(http, ask(image_part(picture(seed=seed))), **GREEDY)["choices"][0]["message"]["content"])

    assert look(1) == look(1) != look(2)


def test_request_id_is_kept(http: httpx.Client) -> None:
    body = {"model": MODEL, "messages": HELLO, "max_tokens": 1}
    kept = http.post("/v1/chat/completions", json=body, headers={"x-request-id": "mine-1"})
    assert kept.headers["x-request-id"] == "mine-1" and kept.json()["id"] == "chatcmpl-mine-1"
    odd = http.post("/v1/chat/completions", json=body, headers={"x-request-id": "a b\tc" * 50})
    assert odd.status_code == 200 and len(odd.headers["x-request-id"]) == 32


def test_model_may_be_left_out(http: httpx.Client) -> None:
    answer = http.post("/v1/chat/completions", json={"messages": HELLO, "max_tokens": 1}).json()
    assert answer["model"] == MODEL


def test_harmless_and_unknown_fields_are_accepted(http: httpx.Client) -> None:
    harmless = {"user": "u", "metadata": {"a": "b"}, "store": True, "service_tier": "auto", "parallel_tool_calls": True}
    neutral = {
        "response_format": {"type": "text"},
        "tools": [],
        "tool_choice": "none",
        "best_of": 1,
        "length_penalty": 1.0,
    }
    assert text_of(http, **harmless, **neutral, nobody_knows_this=1) == text_of(http)


def test_data_url_with_a_wrong_type_is_read_by_its_content(http: httpx.Client) -> None:
    part = {"type": "image_url", "image_url": {"url": data_url(picture(kind="JPEG"), "image/png")}}
    assert prompt_tokens(http, ask(part)) > prompt_tokens(http, ask())


def test_prompt_logprobs(http: httpx.Client) -> None:
    """One entry for each token that the model reads; null for the first, and where a picture stands."""
    for messages in (HELLO, ask(image_part(picture()))):
        body = {"model": MODEL, "messages": messages}
        ids = http.post("/tokenize", json=body).json()["tokens"]
        answer = chat(http, messages, max_tokens=1, n=2, prompt_logprobs=1)
        told, pad = answer["prompt_logprobs"], tiny.token_ids()["<|image_pad|>"]
        assert len(told) == len(ids) and len(answer["choices"]) == 2
        assert [entry is None for entry in told] == [place == 0 or token == pad for place, token in enumerate(ids)]
        for token_id, entry in zip(ids, told, strict=True):
            if entry is not None:
                ranks = {each["rank"] for each in entry.values()}
                assert str(token_id) in entry and 1 in ranks and len(ranks) == len(entry) <= 2
                assert all(each["logprob"] <= 0 and each["decoded_token"] for each in entry.values())
    alone = chat(http, max_tokens=0, prompt_logprobs=0)
    [choice] = alone["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("", "length") and alone["prompt_logprobs"]
    refused = http.post("/v1/chat/completions", json={"messages": HELLO, "stream": True, "prompt_logprobs": 1})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "prompt_logprobs")
