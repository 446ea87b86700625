"""The same greedy tokens whatever runs beside a request and however it is cut into steps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import tiny
from trifocal.llm import LLM
from trifocal.types import EngineStats, RequestError, RequestOutput, SamplingParams

IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


def picture(seed: int, height: int = 84, width: int = 112) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def clip(seed: int, frames: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, 84, 84, 3), dtype=np.uint8)


def turn(text: str) -> str:
    return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


def mixed_prompts() -> list[dict[str, Any]]:
    """16 prompts: text of several lengths, pictures (two of equal size under the same text), clips, both."""
    prompts: list[dict[str, Any]] = [{"prompt": turn("How many circles? " * count)} for count in (1, 2, 5, 9, 17)]
    for seed in range(4):
        data = {"image": picture(seed)}
        prompts.append({"prompt": turn(f"{IMAGE}What is in the image?"), "multi_modal_data": data})
    prompts.append({"prompt": turn(f"Look: {IMAGE}"), "multi_modal_data": {"image": picture(9, 140, 308)}})
    three = [picture(10, 28, 28), picture(11, 252, 84), picture(12, 112, 112)]
    prompts.append({"prompt": turn(f"{IMAGE} or {IMAGE}{IMAGE}?"), "multi_modal_data": {"image": three}})
    same = [picture(13), picture(13)]
    prompts.append({"prompt": turn(f"{IMAGE} and {IMAGE}"), "multi_modal_data": {"image": same}})
    for seed in range(2):
        prompts.append({"prompt": turn(f"{VIDEO}Where?"), "multi_modal_data": {"video": clip(seed)}})
    both = {"image": picture(20), "video": clip(21, frames=6)}
    prompts.append({"prompt": turn(f"{VIDEO} then {IMAGE} what?"), "multi_modal_data": both})
    prompts.append({"prompt": turn("bye")})
    assert len(prompts) == 16
    return prompts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_checkpoint(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def alone(folder: Path, dtype: str) -> list[list[int]]:
    """The reference: one at a time, whole prompts, nothing cached."""
    with LLM(str(folder), dtype=dtype, enable_prefix_caching=False) as llm:
        return [tokens(llm.generate(prompt, GREEDY, use_tqdm=False))[0] for prompt in mixed_prompts()]


def tokens(outputs: list[RequestOutput]) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in outputs]


def together(folder: Path, rounds: int = 1, **engine_args: Any) -> tuple[list[list[int]], EngineStats]:
    with LLM(str(folder), **engine_args) as llm:
        for _ in range(rounds):
            outputs = llm.generate(mixed_prompts(), GREEDY, use_tqdm=False)
        stats = llm.stats()
    assert (stats.kv_blocks_used, stats.encoder_bytes_pinned, stats.num_running, stats.num_waiting) == (0, 0, 0, 0)
    return tokens(outputs), stats


def test_oracle_is_not_trivial(alone: list[list[int]]) -> None:
    assert len({tuple(each) for each in alone}) == len(alone), "prompts must give different answers"
    assert all(len(set(each)) > 3 for each in alone), "an answer of one repeated token proves nothing"


@pytest.mark.parametrize("block_size", [16, 128])
def test_together(folder: Path, dtype: str, alone: list[list[int]], block_size: int) -> None:
    got, _ = together(folder, dtype=dtype, block_size=block_size)
    assert got == alone


def test_chunked_prefill_of_16_tokens(folder: Path, dtype: str, alone: list[list[int]]) -> None:
    got, stats = together(folder, dtype=dtype, max_num_batched_tokens=16)
    assert got == alone
    assert stats.num_steps > 40, "a budget of 16 tokens must take many steps"


def test_without_chunked_prefill(folder: Path, dtype: str, alone: list[list[int]]) -> None:
    got, _ = together(folder, dtype=dtype, enable_chunked_prefill=False, max_model_len=512)
    assert got == alone


def test_prefix_cache_off(folder: Path, dtype: str, alone: list[list[int]]) -> None:
    got, stats = together(folder, dtype=dtype, enable_prefix_caching=False)
    assert got == alone
    assert stats.prefix_hits == 0


def test_prefix_cache_on_second_round_hits_and_encodes_nothing(
    folder: Path, dtype: str, alone: list[list[int]]
) -> None:
    got, first = together(folder, dtype=dtype)
    again, second = together(folder, rounds=2, dtype=dtype)
    assert got == again == alone
    assert second.num_media_encoded == first.num_media_encoded
    assert second.prefix_hits > first.prefix_hits


def test_preemption(folder: Path, dtype: str, alone: list[list[int]]) -> None:
    """A pool that holds the largest request but not all of them."""
    got, stats = together(folder, dtype=dtype, num_gpu_blocks_override=14)
    assert stats.num_preemptions > 0, "the pool must be too small for all"
    assert got == alone


def test_preemption_inside_an_image_with_chunks(folder: Path, alone: list[list[int]], dtype: str) -> None:
    got, stats = together(folder, dtype=dtype, num_gpu_blocks_override=14, max_num_batched_tokens=24)
    assert stats.num_preemptions > 0
    assert got == alone


def test_encoder_cache_for_one_item_at_a_time(folder: Path, dtype: str, alone: list[list[int]]) -> None:
    """Room for the largest item only: embeddings are dropped and made again."""
    largest = 55 * tiny.HIDDEN * (4 if dtype == "float32" else 2)
    got, stats = together(folder, dtype=dtype, encoder_cache_gib=largest / 2**30, max_num_batched_tokens=64)
    assert got == alone
    assert stats.encoder_bytes_cached <= largest


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with LLM(str(folder)) as llm:
        yield llm


def test_same_picture_again_is_served_from_the_caches(llm: LLM) -> None:
    text = turn(f"{IMAGE}" + "What is in the image? " * 4)
    prompt = {"prompt": text, "multi_modal_data": {"image": picture(50)}}
    first = llm.generate(prompt, GREEDY, use_tqdm=False)[0]
    encoded = llm.stats().num_media_encoded
    second = llm.generate(prompt, GREEDY, use_tqdm=False)[0]
    assert llm.stats().num_media_encoded == encoded, "no vision work for the second request"
    assert second.num_cached_tokens > first.num_cached_tokens == 0
    assert tokens([second]) == tokens([first])
    other = {"prompt": text, "multi_modal_data": {"image": picture(51)}}
    in_flight = llm.generate([prompt, other, prompt], GREEDY, use_tqdm=False)
    assert tokens(in_flight)[0] == tokens(in_flight)[2] == tokens([first])[0]
    assert tokens(in_flight)[1] != tokens([first])[0], "a picture of equal size gets its own answer"


def test_one_picture_twice_in_flight_is_encoded_once(llm: LLM) -> None:
    encoded = llm.stats().num_media_encoded
    prompts = [
        {"prompt": turn(f"{IMAGE}{question}"), "multi_modal_data": {"image": picture(60)}}
        for question in ("What?", "Where is it?")
    ]
    llm.generate(prompts, GREEDY, use_tqdm=False)
    assert llm.stats().num_media_encoded == encoded + 1


def test_seeded_sampling_does_not_depend_on_neighbours(llm: LLM) -> None:
    params = SamplingParams(temperature=1.0, top_p=0.95, seed=7, max_tokens=20, ignore_eos=True)
    crowd = [SamplingParams(temperature=1.3, max_tokens=count, ignore_eos=True) for count in range(3, 18)]
    prompts = mixed_prompts()
    lonely = tokens(llm.generate(prompts[7], params, use_tqdm=False))[0]
    crowded = tokens(llm.generate([*prompts[:7], prompts[7], *prompts[8:]], [*crowd[:7], params, *crowd[7:]]))[7]
    assert crowded == lonely
    other_seed = tokens(llm.generate(prompts[7], params.replace(seed=8), use_tqdm=False))[0]
    assert other_seed != lonely


def test_seeded_sampling_survives_preemption(folder: Path) -> None:
    params = [SamplingParams(temperature=1.0, seed=index, max_tokens=40, ignore_eos=True) for index in range(16)]
    results = []
    for engine_args in ({}, {"num_gpu_blocks_override": 20}):
        with LLM(str(folder), **engine_args) as llm:
            results.append(tokens(llm.generate(mixed_prompts(), params, use_tqdm=False)))
            num_preemptions = llm.stats().num_preemptions
    assert num_preemptions > 0
    assert results[0] == results[1]


def test_n_choices_differ_and_repeat(llm: LLM) -> None:
    params = SamplingParams(n=3, temperature=1.0, seed=1, max_tokens=10, ignore_eos=True)
    first, second = (llm.generate("How many red circles?", params, use_tqdm=False)[0] for _ in range(2))
    texts = [tuple(choice.token_ids) for choice in first.outputs]
    assert len(set(texts)) == 3
    assert texts == [tuple(choice.token_ids) for choice in second.outputs]
    assert [choice.index for choice in first.outputs] == [0, 1, 2]


def test_stop_token_and_stop_string_end_early(llm: LLM) -> None:
    full = llm.generate("The quick brown fox", GREEDY, use_tqdm=False)[0].outputs[0]
    stop_id = full.token_ids[5]
    first_at = full.token_ids.index(stop_id)
    by_id = llm.generate("The quick brown fox", GREEDY.replace(stop_token_ids=[stop_id]), use_tqdm=False)[0].outputs[0]
    assert (by_id.finish_reason, by_id.stop_reason) == ("stop", stop_id)
    assert by_id.token_ids == full.token_ids[: first_at + 1]
    stop = next(full.text[i : i + 2] for i in range(3, len(full.text)) if full.text[i : i + 2].isprintable())
    by_text = llm.generate("The quick brown fox", GREEDY.replace(stop=[stop]), use_tqdm=False)[0].outputs[0]
    assert by_text.text == full.text[: full.text.index(stop)]
    assert (by_text.finish_reason, by_text.stop_reason) == ("stop", stop)


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"max_tokens": 100_000}, "max_tokens"),
        ({"logprobs": 21}, "logprobs"),
        ({"logit_bias": {tiny.VOCAB: 1.0}}, "logit_bias"),
    ],
)
def test_what_can_never_run_is_refused_with_its_field(llm: LLM, params: dict[str, Any], field: str) -> None:
    with pytest.raises(RequestError) as caught:
        llm.generate("hello", SamplingParams(**params), use_tqdm=False)
    assert caught.value.param == field
    assert llm.generate("hello", GREEDY, use_tqdm=False)[0].finished


def test_a_refused_prompt_leaves_nothing_behind(llm: LLM) -> None:
    good = {"prompt": turn(f"{IMAGE}x"), "multi_modal_data": {"image": picture(70)}}
    bad = {"prompt": turn(f"{IMAGE}{IMAGE}x"), "multi_modal_data": {"image": picture(71)}}
    with pytest.raises(RequestError, match="1.*2|2.*1"):
        llm.generate([good, bad], GREEDY, use_tqdm=False)
    stats = llm.stats()
    assert (stats.kv_blocks_used, stats.encoder_bytes_pinned, stats.num_running, stats.num_waiting) == (0, 0, 0, 0)
