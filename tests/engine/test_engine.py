"""Requests through `LLM`: caches, seeds, choices, stops, refusals. Greedy equality: tests/models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests import tiny
from tests.models.engine_runs import GREEDY, clip, is_idle, mixed_prompts, picture, run_together, tokens, turn
from tests.models.families import ENTRIES
from trifocal.errors import RequestError
from trifocal.llm import LLM
from trifocal.sampling_params import SamplingParams

IMAGE, VIDEO = ENTRIES["qwen2_5_vl"].image, ENTRIES["qwen2_5_vl"].video


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


def test_frames_in_a_list_are_one_clip(llm: LLM) -> None:
    """As in vLLM: pictures or arrays under "video" are the frames of one clip, arrays of four axes are several."""
    frames = clip(52)
    given = [list(frames), [Image.fromarray(frame) for frame in frames], [frames], frames.transpose(0, 3, 1, 2) / 255]
    prompts = [{"prompt": turn(f"{VIDEO}Where?"), "multi_modal_data": {"video": video}} for video in (frames, *given)]
    found = tokens(llm.generate(prompts, GREEDY, use_tqdm=False))
    assert all(answer == found[0] for answer in found)
    two = {"prompt": turn(f"{VIDEO}{VIDEO}?"), "multi_modal_data": {"video": [frames, clip(53)]}}
    assert llm.generate(two, GREEDY, use_tqdm=False)[0].finished


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
    prompts = mixed_prompts(IMAGE, VIDEO)
    lonely = tokens(llm.generate(prompts[7], params, use_tqdm=False))[0]
    crowded = tokens(llm.generate([*prompts[:7], prompts[7], *prompts[8:]], [*crowd[:7], params, *crowd[7:]]))[7]
    assert crowded == lonely
    other_seed = tokens(llm.generate(prompts[7], params.replace(seed=8), use_tqdm=False))[0]
    assert other_seed != lonely


def test_seeded_sampling_survives_preemption(folder: Path) -> None:
    params = [SamplingParams(temperature=1.0, seed=index, max_tokens=40, ignore_eos=True) for index in range(16)]
    plain, squeezed = (
        run_together(folder, mixed_prompts(IMAGE, VIDEO), params, **engine_args)
        for engine_args in ({}, {"num_gpu_blocks_override": 20})
    )
    assert squeezed.stats.num_preemptions > 0
    assert squeezed.tokens == plain.tokens


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


def test_the_models_own_end_of_a_turn_is_no_stop_reason(llm: LLM) -> None:
    end = tiny.token_ids()["<|im_end|>"]
    ending = SamplingParams(temperature=0, max_tokens=9, logit_bias={end: 100.0})
    for params, reason in (
        (ending, None),
        (ending.replace(stop_token_ids=[end]), None),
        (ending.replace(stop_token_ids=[end], ignore_eos=True), end),
    ):
        done = llm.generate("The quick", params, use_tqdm=False)[0].outputs[0]
        assert (done.finish_reason, done.stop_reason, done.token_ids) == ("stop", reason, [end])


def test_an_answer_gets_what_the_prompt_leaves_of_the_context(llm: LLM) -> None:
    context = llm.config.scheduling.max_model_len
    params = SamplingParams(temperature=0, ignore_eos=True, max_tokens=context)
    done = llm.generate([5] * (context - 3), params, use_tqdm=False)[0].outputs[0]
    assert (done.finish_reason, len(done.token_ids)) == ("length", 3)
    with pytest.raises(RequestError, match=f"context length is {context} tokens, but the prompt has {context}"):
        llm.generate([5] * context, params, use_tqdm=False)


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
    assert is_idle(llm.stats())
