"""What is refused before it is queued, and which field is blamed."""

from __future__ import annotations

import pytest

from tests.engine.fake_worker import PLACEHOLDER, VOCAB, make_limits, media_item
from trifocal.engine.limits import check, clip_max_tokens
from trifocal.errors import RequestError
from trifocal.sampling_params import SamplingParams
from trifocal.types import MediaItem, Prompt, Span

RED, BLUE = b"r" * 16, b"b" * 16
TEXT = Prompt([2, 3, 4])


def refusal(prompt: Prompt, params: SamplingParams | None = None, **limits: object) -> RequestError:
    with pytest.raises(RequestError) as caught:
        check(prompt, params or SamplingParams(), make_limits(**limits))
    return caught.value


def pictures(*spans: tuple[int, int], num_tokens: int = 20) -> Prompt:
    media = [media_item(content_hash, *span) for content_hash, span in zip((RED, BLUE), spans, strict=False)]
    return Prompt([PLACEHOLDER] * num_tokens, tuple(media))


@pytest.mark.parametrize("limits", [{"max_model_len": 10}, {"num_blocks": 5, "block_size": 2}])
def test_a_prompt_must_leave_room_for_an_answer(limits: dict[str, int]) -> None:
    for max_tokens in (None, 1, 4, 5, 10):
        check(Prompt([2] * 9), SamplingParams(max_tokens=max_tokens), make_limits(**limits))
    error = refusal(Prompt([2] * 10), SamplingParams(max_tokens=1), **limits)
    assert (error.status, error.param, error.code) == (400, "messages", "context_length_exceeded")
    assert "maximum context length is 10 tokens, but the prompt has 10" in error.message


def test_max_tokens_that_no_prompt_leaves_are_refused() -> None:
    error = refusal(Prompt([2]), SamplingParams(max_tokens=11), max_model_len=10)
    assert (error.status, error.param) == (400, "max_tokens")
    assert "max_tokens=11 cannot be greater than max_model_len=10" in error.message


@pytest.mark.parametrize(("max_tokens", "clipped"), [(None, 4), (3, 3), (4, 4), (5, 4), (10, 4)])
def test_max_tokens_are_clipped_to_what_the_prompt_leaves(max_tokens: int | None, clipped: int) -> None:
    params = SamplingParams(max_tokens=max_tokens, seed=5)
    assert clip_max_tokens(params, 6, 10) == params.replace(max_tokens=clipped)
    with pytest.raises(RequestError, match="min_tokens=5 is more than the 4 tokens that a prompt of 6 leaves"):
        clip_max_tokens(SamplingParams(max_tokens=10, min_tokens=5), 6, 10)


@pytest.mark.parametrize(
    ("prompt", "params", "param"),
    [
        (Prompt([]), {}, "prompt"),
        (Prompt([2, VOCAB]), {}, "prompt"),
        (Prompt([2, -1]), {}, "prompt"),
        (TEXT, {"logprobs": 6}, "logprobs"),
        (TEXT, {"logit_bias": {VOCAB: 1.0}}, "logit_bias"),
    ],
)
def test_the_offending_field_is_named(prompt: Prompt, params: dict[str, object], param: str) -> None:
    error = refusal(prompt, SamplingParams(**params))  # type: ignore[arg-type]
    assert (error.status, error.param) == (400, param)


@pytest.mark.parametrize(
    ("asked", "most", "is_taken"),
    [
        (-1, -1, True),
        (VOCAB, -1, True),
        (VOCAB + 1, -1, False),
        (-1, VOCAB, True),
        (-1, VOCAB - 1, False),
        (0, 0, True),
    ],
)
def test_minus_one_is_the_whole_vocabulary(asked: int, most: int, is_taken: bool) -> None:
    params, limits = SamplingParams(logprobs=asked), make_limits(max_logprobs=most)
    if is_taken:
        check(TEXT, params, limits)
        return
    error = refusal(TEXT, params, max_logprobs=most)
    assert error.param == "logprobs" and f"at most {VOCAB if most < 0 else most} are allowed" in error.message


def test_values_at_the_edge_are_taken() -> None:
    last = VOCAB - 1
    params = SamplingParams(logprobs=5, logit_bias={last: 1.0}, stop_token_ids=[last, 0])
    check(Prompt([0, last]), params, make_limits())


@pytest.mark.parametrize("spans", [[(4, 8), (10, 3)], [(8, 4), (0, 4)], [(15, 6)], [(4, 0)], [(-1, 4)]])
def test_spans_must_lie_in_the_prompt_in_order_and_apart(spans: list[tuple[int, int]]) -> None:
    assert refusal(pictures(*spans)).param == "messages"


def test_a_span_says_for_each_of_its_positions_what_it_takes() -> None:
    span = Span(0, 4, (True, False, True))
    item = MediaItem("image", RED, span, (1,), media_item(RED, 0, 1).pixels)
    assert refusal(Prompt([PLACEHOLDER] * 4, (item,))).param == "messages"


def test_embeddings_must_fit_the_encoder_cache() -> None:
    check(pictures((0, 8), (8, 8)), SamplingParams(), make_limits(encoder_cache_bytes=16))
    error = refusal(pictures((0, 9)), encoder_cache_bytes=16)
    assert (error.status, error.param) == (413, "messages")
    assert "18 bytes" in error.message
    few = Prompt([PLACEHOLDER] * 12, (media_item(RED, 0, (True, False) * 6),))
    check(few, SamplingParams(), make_limits(encoder_cache_bytes=12))


def test_without_chunked_prefill_all_media_must_fit_at_once() -> None:
    limits = {"encoder_cache_bytes": 16, "enable_chunked_prefill": False}
    assert refusal(pictures((0, 8), (8, 8)), **limits).status == 413
    check(pictures((0, 4), (8, 4)), SamplingParams(), make_limits(**limits))
