"""What is refused before it is queued, and which field is blamed."""

from __future__ import annotations

import pytest

from tests.engine.fake_worker import PLACEHOLDER, VOCAB, make_limits, media_item
from trifocal.engine.admission import check
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
def test_prompt_and_answer_must_fit_the_context_and_the_cache(limits: dict[str, int]) -> None:
    check(Prompt([2] * 6), SamplingParams(max_tokens=4), make_limits(**limits))
    error = refusal(Prompt([2] * 6), SamplingParams(max_tokens=5), **limits)
    assert (error.status, error.param, error.code) == (400, "max_tokens", "context_length_exceeded")
    assert "10 tokens" in error.message
    assert refusal(Prompt([2] * 10), SamplingParams(max_tokens=1), **limits).param == "messages"


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
