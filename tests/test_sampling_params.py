"""Every field is checked by its name; what vLLM knows beyond them is taken where it asks for what happens anyway."""

from __future__ import annotations

import copy
import dataclasses
import enum
import pickle
from typing import Any

import pytest

from trifocal.errors import RequestError
from trifocal.sampling_params import _KINDS, SamplingParams

OTHER_TYPES = [object(), {"a": 1}, "no", [None], float("nan")]


def refusal(**given: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        SamplingParams(**given)
    return caught.value


def test_every_field_is_checked() -> None:
    assert set(_KINDS) == {field.name for field in dataclasses.fields(SamplingParams)}


@pytest.mark.parametrize("name", sorted(_KINDS))
@pytest.mark.parametrize("value", OTHER_TYPES, ids=["object", "dict", "text", "list", "nan"])
def test_a_value_of_another_type_is_refused_with_the_name(name: str, value: Any) -> None:
    if (name, value) == ("stop", "no"):
        return
    error = refusal(**{name: value})
    assert error.param == name
    assert str(error).startswith(name) and " must be " in str(error)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"stop_token_ids": 5}, "stop_token_ids must be a list of token ids, got 5"),
        ({"stop_token_ids": "5"}, "stop_token_ids must be a list of token ids, got '5'"),
        ({"stop_token_ids": [2, True]}, "stop_token_ids[1] must be an integer of at least 0, got True"),
        ({"ignore_eos": "no"}, "ignore_eos must be True or False, got 'no'"),
        ({"ignore_eos": 2}, "ignore_eos must be True or False, got 2"),
        ({"ignore_eos": None}, "ignore_eos must be True or False, got None"),
        ({"skip_special_tokens": 0.0}, "skip_special_tokens must be True or False, got 0.0"),
        ({"stop": 5}, "stop must be a list of non-empty strings, or one such string, got 5"),
        ({"stop": ["a", ""]}, "stop[1] must be a non-empty string, got ''"),
        ({"stop": b"a"}, "stop must be a list of non-empty strings, or one such string, got b'a'"),
        ({"logit_bias": [1]}, "logit_bias must be a dict of numbers by token id, got [1]"),
        ({"logit_bias": {"7": 1}}, "logit_bias: each key must be an integer of at least 0, got '7'"),
        ({"logit_bias": {7: 101}}, "logit_bias[7] must be a number in [-100, 100], got 101"),
        ({"max_tokens": "8"}, "max_tokens must be an integer of at least 0, got '8'"),
        (
            {"max_tokens": 0},
            "max_tokens must be at least 1, got 0; 0 is for prompt_logprobs without an answer",
        ),
        ({"prompt_logprobs": -2}, "prompt_logprobs must be an integer of at least -1, got -2"),
        ({"allowed_token_ids": []}, "allowed_token_ids must be a list of token ids that is not empty, got []"),
        ({"allowed_token_ids": [-1]}, "allowed_token_ids[0] must be an integer of at least 0, got -1"),
        ({"bad_words": "no"}, "bad_words must be a list of words, got 'no'"),
        ({"bad_words": ["no", " "]}, "bad_words[1] must be a string that is not blank, got ' '"),
        ({"n": True}, "n must be an integer of at least 1, got True"),
        ({"temperature": "hot"}, "temperature must be a number in [0, inf), got 'hot'"),
        ({"seed": "x" * 999}, f"seed must be an integer between {-(2**63)} and {2**63 - 1}, got '{'x' * 79}"),
    ],
    ids=str,
)
def test_messages(given: dict[str, Any], message: str) -> None:
    assert str(refusal(**given)) == message


def test_what_is_taken_is_put_in_order() -> None:
    params = SamplingParams(stop="x", stop_token_ids=(3, 4), ignore_eos=1, top_k=0)  # type: ignore[arg-type]
    assert (params.stop, params.stop_token_ids, params.top_k) == (["x"], [3, 4], -1)
    assert params.bad_words == SamplingParams(bad_words=None).bad_words == []
    assert SamplingParams(max_tokens=0, prompt_logprobs=0).max_tokens == 0
    assert params.ignore_eos is True


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("temprature", "temperature"), ("max_new_tokens", "max_tokens"), ("max_completion_tokens", "max_tokens"),
        ("stop_tokens_ids", "stop_token_ids"), ("top_logprobs", "logprobs"), ("prompt_logprob", "prompt_logprobs"),
    ],
)  # fmt: skip
def test_an_unknown_keyword_names_the_nearest(name: str, near: str) -> None:
    error = refusal(**{name: 1})
    assert str(error) == f"unknown sampling parameter {name!r}; did you mean {near!r}?"
    assert error.param == name


def test_an_unknown_keyword_that_is_near_to_nothing_is_told_what_there_is() -> None:
    assert "known are n, presence_penalty" in str(refusal(xyzzy=1))
    with pytest.raises(RequestError, match="takes keyword arguments only"):
        SamplingParams(1)  # type: ignore[misc]


def test_streaming_is_the_server_s() -> None:
    assert SamplingParams(stream=False) == SamplingParams()  # type: ignore[call-arg]
    assert '"stream": true in a request' in str(refusal(stream=True))


class Kind(enum.Enum):
    """As vLLM's RequestOutputKind."""

    DELTA = 1
    FINAL_ONLY = 2
    OTHER = 7


NEUTRAL: dict[str, list[Any]] = {
    "structured_outputs": [None], "guided_decoding": [None],
    "logits_processors": [None, []], "truncate_prompt_tokens": [None], "best_of": [None, 1],
    "detokenize": [True], "output_kind": [None, 0, Kind.DELTA, Kind.FINAL_ONLY], "extra_args": [None, {}],
    "spaces_between_special_tokens": [True], "skip_clone": [False, True], "use_beam_search": [False],
    "length_penalty": [1.0], "early_stopping": [False], "thinking_token_budget": [None],
}  # fmt: skip
MEANINGFUL: dict[str, Any] = {
    "structured_outputs": {"json": {}}, "guided_decoding": object(),
    "logits_processors": [len], "truncate_prompt_tokens": -1, "best_of": 2,
    "detokenize": False, "output_kind": Kind.OTHER, "extra_args": {"a": 1}, "spaces_between_special_tokens": False,
    "use_beam_search": True, "length_penalty": 0.5, "early_stopping": True, "thinking_token_budget": 5,
}  # fmt: skip


@pytest.mark.parametrize("name", NEUTRAL)
def test_what_is_not_done_here_is_taken_where_it_asks_for_nothing(name: str) -> None:
    for value in NEUTRAL[name]:
        assert SamplingParams(**{name: value}) == SamplingParams()
    if name in MEANINGFUL:
        error = refusal(**{name: MEANINGFUL[name]})
        assert str(error).startswith(f"not available yet: {name}=")
        assert (error.param, error.code) == (name, "unsupported_parameter")


def test_copies() -> None:
    params = SamplingParams(stop=["x"], logit_bias={3: 1.5}, stop_token_ids=[4], seed=7)
    for other in (
        pickle.loads(pickle.dumps(params)), copy.copy(params), copy.deepcopy(params), params.replace(),
        params.clone(), dataclasses.replace(params, detokenize=True), SamplingParams(**dataclasses.asdict(params)),
    ):  # fmt: skip
        assert other == params
    clone = params.clone()
    assert clone.logit_bias is not params.logit_bias and clone.stop is not params.stop
    with pytest.raises(RequestError, match="did you mean 'seed'"):
        dataclasses.replace(params, sed=1)
