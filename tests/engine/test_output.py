"""From tokens to deltas: what is shown when, what ends a choice, and what its tokens are."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests import tiny
from trifocal.engine.output import Answer, Choice, ChoiceCount, expand
from trifocal.errors import RequestError
from trifocal.sampling_params import SamplingParams
from trifocal.tokenizer import Tokenizer, load_tokenizer
from trifocal.types import Delta, Prompt, Request, TokenLogprobs, TokenOutput


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(str(tiny.write_checkpoint(tmp_path_factory.mktemp("model"))))


def choice(tokenizer: Tokenizer, **params: object) -> Choice:
    request = Request("a", Prompt([5, 6, 7]), SamplingParams(max_tokens=99, **params))  # type: ignore[arg-type]
    return Choice(0, request, tokenizer)


def feed(to: Choice, ids: list[int], reason: str | None = None, stop: int | None = None) -> list[Delta]:
    """One token at a time, the last with the finish reason; deltas until one ends the choice."""
    deltas = []
    for index, token_id in enumerate(ids):
        is_last = index == len(ids) - 1
        logprobs = [TokenLogprobs([token_id], [-0.5], 1)]  # shown only if the choice was asked for them
        output = TokenOutput(
            "a", [token_id], logprobs, finish_reason=reason if is_last else None, stop_reason=stop if is_last else None
        )  # type: ignore[arg-type]
        delta = to.feed(output)
        deltas += [] if delta is None else [delta]
    return deltas


def text_of(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


def test_all_of_a_text_comes_out_with_its_tokens_and_logprobs(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("The dog 👍 looks.")
    deltas = feed(choice(tokenizer, logprobs=0), ids, "length")
    assert text_of(deltas) == "The dog 👍 looks."
    assert [token_id for delta in deltas for token_id in delta.token_ids] == ids
    assert [each.token_ids[0] for delta in deltas for each in delta.logprobs or []] == ids
    assert [delta.finish_reason for delta in deltas] == [None] * (len(deltas) - 1) + ["length"]
    (thumb,) = (delta for delta in deltas if "👍" in delta.text)
    assert len(thumb.token_ids) == 4, "they come with the text that completes them"


def test_text_held_for_a_stop_string_is_shown_at_the_end(tokenizer: Tokenizer) -> None:
    deltas = feed(choice(tokenizer, stop="dogs"), tokenizer.encode("The dog"), "length")
    assert text_of(deltas) == "The dog"
    assert deltas[-1].finish_reason == "length"


@pytest.mark.parametrize(("include", "text"), [(False, "The quick"), (True, "The quick brown f")])
def test_a_stop_string_ends_the_choice(tokenizer: Tokenizer, include: bool, text: str) -> None:
    one = choice(tokenizer, stop=[" brown f"], include_stop_str_in_output=include)
    deltas = feed(one, tokenizer.encode("The quick brown fox jumps"), "length")
    assert text_of(deltas) == text
    assert (deltas[-1].finish_reason, deltas[-1].stop_reason) == ("stop", " brown f")
    assert one.is_finished
    assert len(deltas[-1].token_ids) > 0


@pytest.mark.parametrize(("include", "text"), [(False, "a"), (True, "ab")])
def test_a_stop_token_is_not_part_of_the_text_unless_asked_for(tokenizer: Tokenizer, include: bool, text: str) -> None:
    ids = tokenizer.encode("a") + tokenizer.encode("b")
    one = choice(tokenizer, include_stop_str_in_output=include, stop_token_ids=ids[-1:])
    deltas = feed(one, ids, "stop", ids[-1])
    assert text_of(deltas) == text
    assert [token_id for delta in deltas for token_id in delta.token_ids] == ids
    assert (deltas[-1].finish_reason, deltas[-1].stop_reason) == ("stop", ids[-1])


def test_only_what_was_asked_for_is_told_as_the_stop_reason(tokenizer: Tokenizer) -> None:
    end, other = tiny.token_ids()["<|im_end|>"], tiny.token_ids()["<|endoftext|>"]
    assert tokenizer.eos_token_id == end
    for params, stop, told in (
        ({}, end, None),
        ({}, other, None),  # the checkpoint or its family ends turns with it, too
        ({"stop_token_ids": [other]}, other, other),
        ({"stop_token_ids": [other]}, end, None),
        ({"stop_token_ids": [end]}, end, None),
        ({"stop_token_ids": [end], "ignore_eos": True}, end, end),
    ):
        last = feed(choice(tokenizer, **params), [*tokenizer.encode("a"), stop], "stop", stop)[-1]
        assert (last.finish_reason, last.stop_reason, last.text) == ("stop", told, ""), params


def test_stop_strings_wait_for_min_tokens(tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode("a"), *tokenizer.encode("b"), *tokenizer.encode("a")] * 2
    deltas = feed(choice(tokenizer, stop="a", min_tokens=3), ids, "length")
    assert (text_of(deltas), deltas[-1].stop_reason) == ("aba", "a")


def test_an_unfinished_character_is_shown_at_the_end(tokenizer: Tokenizer) -> None:
    deltas = feed(choice(tokenizer), tokenizer.encode("a👍")[:3], "length")
    assert text_of(deltas) == "a\ufffd"


def test_an_error_ends_a_choice_without_tokens(tokenizer: Tokenizer) -> None:
    one = choice(tokenizer)
    delta = one.feed(TokenOutput("a", [], finish_reason="error", stop_reason="broken picture"))
    assert delta is not None
    assert (delta.text, delta.token_ids, delta.finish_reason, delta.stop_reason) == ("", [], "error", "broken picture")
    assert one.feed(TokenOutput("a", [9])) is None


Expand = Callable[..., list[Request]]


@pytest.fixture
def expanded(tokenizer: Tokenizer) -> Expand:
    def expanded(params: SamplingParams, num_prompt: int = 4) -> list[Request]:
        rng = random.Random(0)
        prompt = Prompt([2] * num_prompt)
        return expand("a", prompt, params, eos_ids=[7, 8], max_model_len=20, rng=rng, tokenizer=tokenizer)

    return expanded


def test_expansion_decides_length_stop_ids_and_seeds(expanded: Expand) -> None:
    (one,) = expanded(SamplingParams(max_tokens=None, stop_token_ids=[3]))
    assert (one.request_id, one.params.max_tokens, one.stop_token_ids) == ("a", 16, {3, 7, 8})
    (other,) = expanded(SamplingParams(ignore_eos=True, stop_token_ids=[3], seed=-5))
    assert (other.stop_token_ids, other.seed) == ({3}, -5)
    many = expanded(SamplingParams(n=3, seed=5))
    assert [(each.request_id, each.seed, each.params.n) for each in many] == [
        ("a/0", 5, 1), ("a/1", 6, 1), ("a/2", 7, 1)
    ]  # fmt: skip
    assert len({each.seed for _ in range(5) for each in expanded(SamplingParams(n=3))}) == 3, "the generator decides"


def test_expansion_refuses_or_clips_what_does_not_fit(expanded: Expand) -> None:
    assert expanded(SamplingParams(max_tokens=20))[0].params.max_tokens == 16
    assert [each.params.max_tokens for each in expanded(SamplingParams(max_tokens=18, n=2))] == [16, 16]
    with pytest.raises(RequestError, match="max_tokens=21 cannot be greater"):
        expanded(SamplingParams(max_tokens=21))
    with pytest.raises(RequestError, match="leaves none for an answer"):
        expanded(SamplingParams(max_tokens=1), num_prompt=20)
    (whole,) = expanded(SamplingParams(max_tokens=0, prompt_logprobs=0), num_prompt=20)
    assert whole.params.max_tokens == 0


def test_the_prompt_is_told_of_once(expanded: Expand) -> None:
    assert [each.prompt_logprobs for each in expanded(SamplingParams(n=3, prompt_logprobs=5))] == [5, None, None]


def test_bad_words_are_banned_with_and_without_a_space_before_them(expanded: Expand, tokenizer: Tokenizer) -> None:
    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(text, add_special_tokens=False))

    (one,) = expanded(SamplingParams(bad_words=[" hello", "<|im_end|>"]))
    words = [ids("hello"), ids(" hello"), ids("<|im_end|>")]
    as_long = len(ids("hello")) == len(ids(" hello")) and ids("hello")[0] != ids(" hello")[0]
    assert list(one.bad_word_ids) == [words[0], *(words[1:2] if as_long else []), words[2]]
    (many,) = expanded(SamplingParams(bad_words=list("abcdefgh")))
    assert {(tokenizer.token_to_id(letter),) for letter in "abcdefgh"} <= set(many.bad_word_ids)


def test_allowed_tokens_of_which_nothing_is_left_are_refused(expanded: Expand, tokenizer: Tokenizer) -> None:
    letter = tokenizer.encode("a", add_special_tokens=False)[0]
    for params in (
        SamplingParams(allowed_token_ids=[letter], bad_words=["a"]),
        SamplingParams(allowed_token_ids=[7, 8], min_tokens=1),
        SamplingParams(allowed_token_ids=[3, 7], stop_token_ids=[3], min_tokens=1),
        SamplingParams(allowed_token_ids=[tokenizer.vocab_size]),
    ):
        with pytest.raises(RequestError, match="^allowed_token_ids: none of these") as caught:
            expanded(params)
        assert caught.value.param == "allowed_token_ids"
    for params in (
        SamplingParams(allowed_token_ids=[7, 8]),
        SamplingParams(allowed_token_ids=[7, 9], min_tokens=1),
        SamplingParams(allowed_token_ids=[letter], bad_words=["aa b"]),
    ):
        assert expanded(params)[0].params.allowed_token_ids == params.allowed_token_ids


def test_more_min_tokens_than_the_context_leaves_are_refused(expanded: Expand) -> None:
    with pytest.raises(RequestError, match="min_tokens"):
        expanded(SamplingParams(max_tokens=None, min_tokens=17))


# ---------------------------------------------------------------------------------------------- answers


class Watcher:
    """An `AnswerObserver` that writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []

    def tokens_come(self, count: ChoiceCount, num_tokens: int, now: float) -> None:
        self.told.append((count.num_tokens, count.last_at, num_tokens, now))

    def choice_ends(self, index: int, count: ChoiceCount, delta: Delta, now: float) -> None:
        self.told.append((index, count.num_tokens, count.first_at, count.last_at, delta.finish_reason, now))


def test_an_answer_adds_up_choices_of_several_prompts() -> None:
    watcher = Watcher()
    prompts = [Prompt([1, 2], text="a"), Prompt([3], text="b")]
    answer = Answer("id", prompts, 2, observer=watcher)

    def take(index: int, text: str, ids: list[int], now: float, **facts: object) -> None:
        logprobs = [TokenLogprobs([each], [-0.5], 1) for each in ids]
        answer.count(index, len(ids), now)
        answer.extend(Delta(index, text, ids, logprobs, **facts), now)  # type: ignore[arg-type]

    take(3, "x", [7], 1.0, num_cached_tokens=1)
    take(0, "y", [8, 9], 2.0, num_cached_tokens=2)
    take(1, "", [], 2.5, finish_reason="stop", stop_reason="z", num_cached_tokens=1)
    assert answer.open == {0, 2, 3} and not answer.outputs[0].finished
    take(0, "Y", [5], 4.0, finish_reason="length", num_cached_tokens=2)
    first, second = answer.outputs
    assert (first.prompt, first.prompt_token_ids, first.finished, second.finished) == ("a", [1, 2], True, False)
    whole, stopped = first.outputs
    assert (whole.text, whole.token_ids, whole.cumulative_logprob) == ("yY", [8, 9, 5], -1.5)
    assert [each.token_ids for each in whole.logprobs or []] == [[8], [9], [5]]
    assert (stopped.index, stopped.text, stopped.finish_reason, stopped.stop_reason) == (1, "", "stop", "z")
    assert answer.choice(3) is second.outputs[1] and second.outputs[1].text == "x"
    assert (answer.num_prompt_tokens, answer.num_generated_tokens, answer.num_cached_tokens) == (3, 4, 2)
    metrics = first.metrics
    assert (metrics.num_generation_tokens, metrics.first_token_ts, metrics.last_token_ts) == (3, 2.0, 4.0)
    assert watcher.told == [
        (0, 0.0, 1, 1.0), (0, 0.0, 2, 2.0), (1, 0, 0.0, 0.0, "stop", 2.5),
        (2, 2.0, 1, 4.0), (0, 3, 2.0, 4.0, "length", 4.0),
    ]  # fmt: skip


def test_an_answer_that_is_read_as_it_comes_is_counted_alone() -> None:
    answer = Answer("id", [Prompt([1])], 1, keeps_text=False)
    answer.count(0, 2, 1.0)
    answer.extend(Delta(0, "xy", [3, 4], [TokenLogprobs([3], [-0.5], 1)], finish_reason="stop"), 1.0)
    [choice] = answer.outputs[0].outputs
    assert (choice.text, choice.token_ids, choice.logprobs) == ("", [], None)
    assert (answer.num_generated_tokens, answer.open, answer.outputs[0].finished) == (2, set(), True)
