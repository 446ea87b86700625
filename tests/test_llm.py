"""What `LLM`'s methods take and give back. Threads: engine/test_shared_engine; requests: engine/test_engine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import tiny
from tests.logged import messages
from tests.models.engine_runs import GREEDY, picture, tokens, turn
from tests.models.families import ENTRIES
from trifocal.errors import ConfigError, RequestError
from trifocal.llm import LLM
from trifocal.sampling_params import SamplingParams

HELLO = [{"role": "user", "content": "hello"}]
IMAGE = ENTRIES["qwen2_5_vl"].image


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    with LLM(str(tiny.write_checkpoint(tmp_path_factory.mktemp("tiny") / "model"))) as llm:
        yield llm


@pytest.mark.parametrize("method", ["generate", "chat"])
def test_options_of_vllm_that_ask_for_nothing(llm: LLM, method: str) -> None:
    call, given = getattr(llm, method), {"generate": "hello", "chat": HELLO}[method]
    expected = tokens(call(given, GREEDY, use_tqdm=False))
    neutral: dict[str, list[Any]] = {
        "lora_request": [None, [None]], "priority": [None, 0, [0]], "tokenization_kwargs": [None, {}],
    }  # fmt: skip
    if method == "chat":
        neutral |= {"tools": [None, []], "chat_template": [None], "chat_template_content_format": ["auto"]}
    for name, values in neutral.items():
        for value in values:
            assert tokens(call(given, GREEDY, use_tqdm=False, **{name: value})) == expected


@pytest.mark.parametrize(
    ("method", "option", "value"),
    [
        ("generate", "lora_request", object()), ("chat", "lora_request", [None, object()]),
        ("generate", "priority", 1), ("chat", "priority", [0, -1]),
        ("generate", "tokenization_kwargs", {"truncation": True}), ("chat", "tools", [{"type": "function"}]),
    ],
)  # fmt: skip
def test_options_that_are_not_there_are_refused_by_name(llm: LLM, method: str, option: str, value: Any) -> None:
    with pytest.raises(RequestError, match=f"not available yet: {option}") as caught:
        getattr(llm, method)(HELLO if method == "chat" else "hello", **{option: value})
    assert caught.value.param == option


def test_fields_of_messages_are_not_ignored_in_silence(llm: LLM, caplog: pytest.LogCaptureFixture) -> None:
    part = {"type": "text", "text": "hello", "cache_controll": 1}
    message = {"role": "user", "content": [part], "foo": 1}
    with caplog.at_level("WARNING"):
        llm.chat([[message], [message]], GREEDY, use_tqdm=False)
    assert messages(caplog) == [
        "unknown fields were ignored: messages[].foo, messages[].content[].cache_controll (did you mean cache_control?)"
    ]
    with pytest.raises(RequestError, match=r"not available yet: messages\[0\].audio"):
        llm.chat([{**HELLO[0], "audio": {"id": "x"}}], GREEDY, use_tqdm=False)


def test_a_chat_template_of_the_call(llm: LLM, tmp_path: Path) -> None:
    template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    file = tmp_path / "template.jinja"
    file.write_text(template)
    for given in (template, str(file)):
        answer = llm.chat(HELLO, GREEDY, use_tqdm=False, chat_template=given)[0]
        assert answer.prompt == "<user>hello"
    assert llm.chat(HELLO, GREEDY, use_tqdm=False)[0].prompt != "<user>hello", "for that call alone"
    for bad, message in (("{% for %}", "does not compile"), ("nowhere.jinja", "^chat_template .* neither a file nor")):
        with pytest.raises(RequestError, match=message) as caught:
            llm.chat(HELLO, GREEDY, use_tqdm=False, chat_template=bad)
        assert caught.value.param == "chat_template"


def test_the_format_of_contents(llm: LLM) -> None:
    template = "{{ messages[0]['content'] is string }} {{ messages[0]['content'] | length }}"
    parts = [{"role": "user", "content": [{"type": "text", "text": "ab"}, {"type": "text", "text": "c"}]}]
    for content_format, expected in (("string", "True 4"), ("openai", "False 2")):
        answer = llm.chat(
            parts, GREEDY, use_tqdm=False, chat_template=template, chat_template_content_format=content_format
        )
        assert answer[0].prompt == expected
    with pytest.raises(RequestError, match="chat_template_content_format must be auto, string or openai, got 'json'"):
        llm.chat(HELLO, GREEDY, use_tqdm=False, chat_template_content_format="json")


def test_keys_of_prompts(llm: LLM) -> None:
    text = {"prompt": "How many circles? " * 8}
    expected = llm.generate(text, GREEDY, use_tqdm=False)[0]
    ids = {"prompt": None, "prompt_token_ids": expected.prompt_token_ids, "multi_modal_uuids": None}
    assert tokens(llm.generate(ids, GREEDY, use_tqdm=False)) == tokens([expected])
    salted = llm.generate({**text, "cache_salt": "mine"}, GREEDY, use_tqdm=False)[0]
    assert llm.generate(text, GREEDY, use_tqdm=False)[0].num_cached_tokens > salted.num_cached_tokens == 0
    with pytest.raises(RequestError, match="no key 'multi_modal_dat'; did you mean 'multi_modal_data'"):
        llm.generate({**text, "multi_modal_dat": {}}, GREEDY, use_tqdm=False)
    with pytest.raises(RequestError, match="not available yet: multi_modal_uuids"):
        llm.generate({**text, "multi_modal_uuids": {"image": ["a"]}}, GREEDY, use_tqdm=False)
    for media, message in (
        (picture(1), "must be a dict like .*, got (Image|ndarray)"),
        ([], "must be a dict like .*, got list"),
        ({"images": picture(1)}, "unknown modality 'images'; known: image, video"),
        ({5: 1, "a": 2}, "unknown modality '5'"),
    ):
        with pytest.raises(RequestError, match=f"^multi_modal_data .*{message}") as caught:
            llm.generate({**text, "multi_modal_data": media}, GREEDY, use_tqdm=False)
        assert caught.value.param == "multi_modal_data"


@pytest.mark.parametrize("given", [{"temperature": 0}, 5, "x", [GREEDY, None], True], ids=str)
def test_sampling_params_of_another_type(llm: LLM, given: Any) -> None:
    with pytest.raises(RequestError, match="sampling_params must be SamplingParams, or a list of them, got "):
        llm.generate(["x", "y"], given, use_tqdm=False)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (None, "prompts must be a string, a list of token ids, a dict, or a list of these, got None"),
        (5, "prompts must be a string, a list of token ids, a dict, or a list of these, got 5"),
        (b"x", "prompts must be a string, a list of token ids, a dict, or a list of these, got b'x'"),
        (["x", 5], "prompt_token_ids must be a list of token ids, got 5"),
        ([["x"]], "prompt_token_ids must be a list of token ids, got ['x']"),
        ([1.5], "prompt_token_ids must be a list of token ids, got 1.5"),
        ({"prompt": 5}, "prompt must be a string, got 5"),
        ({"prompt": "x", "cache_salt": 5}, "cache_salt must be a string, got 5"),
        ({"prompt_token_ids": 5}, "prompt_token_ids must be a list of token ids, got 5"),
        (
            {"prompt": "x", "multi_modal_data": 5},
            'multi_modal_data must be a dict like {"image": …} or {"video": …}, got int',
        ),
    ],
    ids=str,
)
def test_prompts_of_another_type(llm: LLM, prompts: Any, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        llm.generate(prompts, GREEDY, use_tqdm=False)
    assert str(caught.value) == message


@pytest.mark.parametrize("messages", [None, 5, "Hello", {"role": "user", "content": "x"}, ["x"], [5], [[5]]], ids=str)
def test_messages_of_another_type(llm: LLM, messages: Any) -> None:
    with pytest.raises(RequestError, match="messages must be a list of dicts with role and content, or a list of such"):
        llm.chat(messages, GREEDY, use_tqdm=False)


@pytest.mark.parametrize("name", ["add_generation_prompt", "continue_final_message"])
def test_booleans_of_chat(llm: LLM, name: str) -> None:
    with pytest.raises(RequestError, match=f"^{name} must be True or False, got 'no'"):
        llm.chat(HELLO, GREEDY, use_tqdm=False, **{name: "no"})


def test_token_ids_of_numpy_and_tuples_of_prompts(llm: LLM) -> None:
    expected = llm.generate([[5, 6, 7], [5, 6]], GREEDY, use_tqdm=False)
    both: Any = ([5, 6, 7], np.array([5, 6]))
    assert tokens(llm.generate(both, GREEDY, use_tqdm=False)) == tokens(expected)
    assert tokens(llm.generate(np.array([5, 6]), GREEDY, use_tqdm=False)) == tokens(expected[1:])  # type: ignore[arg-type]


def test_a_chat_template_for_every_call(llm: LLM) -> None:
    loud = "{% for message in messages %}{{ message.content | upper }}{% endfor %}"
    expected = llm.chat(HELLO, GREEDY, use_tqdm=False, chat_template=loud)
    assert tokens(llm.chat(HELLO, GREEDY, use_tqdm=False)) != tokens(expected)
    folder = llm.config.model.spec.path
    with LLM(folder, chat_template=loud, num_gpu_blocks_override=64, max_model_len=256) as other:
        assert tokens(other.chat(HELLO, GREEDY, use_tqdm=False)) == tokens(expected)
    with pytest.raises(ConfigError, match="^chat_template must be a file or a Jinja template, got 5"):
        LLM(folder, chat_template=5)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="^chat_template must be a file or a Jinja template, got 5"):
        llm.chat(HELLO, GREEDY, use_tqdm=False, chat_template=5)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["mm_processor_kwargs", "media_io_kwargs"])
def test_errors_behind_the_configuration_name_keywords_too(llm: LLM, name: str) -> None:
    wrong: dict[str, Any] = {name: {"bogus": 1}}
    with pytest.raises(ConfigError, match=f"^{name}: 'bogus' is not "):
        LLM(llm.config.model.spec.path, **wrong)


def test_a_progress_bar_of_ones_own(llm: LLM) -> None:
    counts: list[int] = []

    class Bar:
        def __init__(self, **options: Any) -> None:
            assert options["total"] == 3

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None:
            counts.append(-1)

        def update(self, count: int) -> None:
            counts.append(count)

    llm.generate(["a", "b", "c"], GREEDY, use_tqdm=Bar)
    assert sum(counts) == 2 and counts[-1] == -1, "three prompts, then it is closed"


def test_metrics(llm: LLM) -> None:
    before = time.time()
    picture_prompt = {"prompt": turn(f"{IMAGE}What?"), "multi_modal_data": {"image": picture(80)}}
    params = SamplingParams(n=2, temperature=0.5, seed=1, max_tokens=6, ignore_eos=True)
    text, image = llm.generate(["hello", picture_prompt], params, use_tqdm=False)
    for output in (text, image):
        metrics = output.metrics
        assert metrics.num_generation_tokens == 12
        assert metrics.arrival_ts < metrics.queued_ts < metrics.scheduled_ts < metrics.first_token_ts
        assert metrics.first_token_ts < metrics.last_token_ts
        assert metrics.first_scheduled_time and metrics.first_token_time and metrics.finished_time
        assert metrics.time_in_queue and metrics.last_token_time == metrics.finished_time
        assert before <= metrics.arrival_time < metrics.first_scheduled_time < metrics.first_token_time
        assert metrics.first_token_time < metrics.finished_time <= time.time() + 0.01
        assert metrics.first_token_latency == pytest.approx(metrics.first_token_time - metrics.arrival_time, abs=1e-5)
        assert metrics.time_in_queue == pytest.approx(metrics.first_scheduled_time - metrics.arrival_time, abs=1e-5)
    assert text.metrics.arrival_ts < image.metrics.arrival_ts
    assert text.metrics.queued_ts == image.metrics.queued_ts, "they come to the engine together"
