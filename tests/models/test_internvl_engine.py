"""InternVL through `LLM`: the same greedy tokens however requests are cut into steps, and those of transformers."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import tiny_internvl as tiny
from tests.models.test_internvl_parity import reference, reference_logits
from tests.oracle import Sample
from trifocal.llm import LLM
from trifocal.types import ConfigError, EngineStats, RequestError, RequestOutput, SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
KWARGS = {"max_dynamic_patch": 6}


def picture(seed: int, height: int = 60, width: int = 110) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def clip(seed: int, frames: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, 40, 60, 3), dtype=np.uint8)


def turn(text: str) -> str:
    return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


def prompts() -> list[dict[str, Any]]:
    """Text, pictures of one to seven tiles (30 tokens: three chunks of 16 and more), clips, both."""
    made: list[dict[str, Any]] = [{"prompt": turn("How many circles? " * count)} for count in (1, 4)]
    for seed, size in enumerate([(60, 60), (60, 110), (60, 170), (40, 130)]):
        text = turn("<image>\nWhat is in the image?")
        made.append({"prompt": text, "multi_modal_data": {"image": picture(seed, *size)}})
    two = [picture(10, 110, 60), picture(11, 60, 60)]
    made.append({"prompt": turn("<image> or <image>?"), "multi_modal_data": {"image": two}})
    for seed in range(2):
        made.append({"prompt": turn("<video>\nWhere?"), "multi_modal_data": {"video": clip(seed, 3 + seed)}})
    both = {"image": picture(20), "video": clip(21, 2)}
    made.append({"prompt": turn("<video> then <image> what?"), "multi_modal_data": both})
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_checkpoint(tmp_path_factory.mktemp("internvl") / "model")


@pytest.fixture(scope="module")
def alone(folder: Path) -> list[list[int]]:
    """The reference: one at a time, whole prompts, nothing cached."""
    with LLM(str(folder), enable_prefix_caching=False, mm_processor_kwargs=KWARGS) as llm:
        return [tokens(llm.generate(prompt, GREEDY, use_tqdm=False))[0] for prompt in prompts()]


def tokens(outputs: list[RequestOutput]) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in outputs]


def together(folder: Path, rounds: int = 1, **engine_args: Any) -> tuple[list[list[int]], EngineStats]:
    with LLM(str(folder), mm_processor_kwargs=KWARGS, **engine_args) as llm:
        for _ in range(rounds):
            outputs = llm.generate(prompts(), GREEDY, use_tqdm=False)
        stats = llm.stats()
    assert (stats.kv_blocks_used, stats.encoder_bytes_pinned, stats.num_running, stats.num_waiting) == (0, 0, 0, 0)
    return tokens(outputs), stats


def test_oracle_is_not_trivial(alone: list[list[int]]) -> None:
    assert len({tuple(each) for each in alone}) == len(alone), "prompts must give different answers"
    assert all(len(set(each)) > 2 for each in alone), "an answer of one repeated token proves nothing"


def test_transformers_chooses_the_same_tokens(folder: Path, alone: list[list[int]]) -> None:
    """Pictures and clips: what the processor lays out is what the reference reads, separators of frames included."""
    model = reference("qwen2", "300M")
    with LLM(str(folder), mm_processor_kwargs=KWARGS) as llm:
        for given, answer in zip(prompts(), alone, strict=True):
            data = given.get("multi_modal_data", {})
            images, videos = (data.get(name, []) for name in ("image", "video"))
            images, videos = (each if isinstance(each, list) else [each] for each in (images, videos))
            prompt = llm._builder.build(given["prompt"], images, videos)
            sample = Sample([*prompt.token_ids, *answer[:-1]], list(prompt.media))
            logits = reference_logits(model, sample)[-len(answer) :, : llm.get_tokenizer().vocab_size]
            assert logits.argmax(-1).tolist() == answer


@pytest.mark.parametrize("block_size", [16, 128])
def test_together(folder: Path, alone: list[list[int]], block_size: int) -> None:
    assert together(folder, block_size=block_size)[0] == alone


def test_chunked_prefill_of_16_tokens(folder: Path, alone: list[list[int]]) -> None:
    """Pictures and clips are cut in three and more pieces, also between two frames."""
    got, stats = together(folder, max_num_batched_tokens=16)
    assert got == alone
    assert stats.num_steps > 30, "a budget of 16 tokens must take many steps"


def test_second_round_hits_the_prefix_cache_and_encodes_nothing(folder: Path, alone: list[list[int]]) -> None:
    got, stats = together(folder, rounds=2)
    assert got == alone
    assert stats.prefix_hits > 100 and stats.num_media_encoded == 10


def test_preemption_inside_an_image(folder: Path, alone: list[list[int]]) -> None:
    got, stats = together(folder, num_gpu_blocks_override=9, max_num_batched_tokens=24)
    assert stats.num_preemptions > 0, "the pool must be too small for all"
    assert got == alone


def test_equal_sizes_are_not_confused(folder: Path, alone: list[list[int]]) -> None:
    prompt = prompts()[3]
    other = {**prompt, "multi_modal_data": {"image": picture(99, 60, 110)}}
    with LLM(str(folder), mm_processor_kwargs=KWARGS) as llm:
        got = tokens(llm.generate([prompt, other, prompt], GREEDY, use_tqdm=False))
    assert got[0] == got[2] == alone[3] != got[1]


@pytest.mark.parametrize("layout", ["original", "native"])
def test_chat(tmp_path: Path, layout: tiny.Format) -> None:
    """Both kinds of template give the README's prompt; what users write stays text."""
    folder = tiny.write_checkpoint(tmp_path, layout=layout)
    parts = [
        {"type": "image_pil", "image_pil": picture(1)},
        {"type": "text", "text": "What is <IMG_CONTEXT><img></img> or <image>?"},
    ]
    with LLM(str(folder)) as llm:
        rendered = llm._builder.render([{"role": "user", "content": parts}])
        assert rendered.text == turn("<IMG_CONTEXT>\nWhat is <IMG_CONTEXT><img></img> or <image>?")
        context = llm.get_tokenizer().token_to_id("<IMG_CONTEXT>")
        assert rendered.token_ids.count(context) == 1
        answer = llm.chat([{"role": "user", "content": parts}], GREEDY, use_tqdm=False)[0]
        assert answer.prompt_token_ids.count(context) == 3 * tiny.TOKENS_PER_TILE
        video = {"type": "video", "video": clip(1)}
        answer = llm.chat([{"role": "user", "content": [video]}], GREEDY, use_tqdm=False)[0]
        assert answer.prompt_token_ids.count(context) == 3 * tiny.TOKENS_PER_TILE
        text = llm.get_tokenizer().decode(answer.prompt_token_ids, skip_special_tokens=True)
        assert text.startswith("user\nFrame1: \nFrame2: \nFrame3: ")


def test_stop_tokens(folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """`<|im_end|>` ends an answer although config.json does not name it. Stop ids that are words are obeyed, with one
    warning: the seed's client sends InternLM2's ids to every InternVL."""
    monkeypatch.setattr(logging.getLogger("trifocal"), "propagate", True)
    end = tiny.token_ids()["<|im_end|>"]
    params = SamplingParams(temperature=0, max_tokens=5, logit_bias={end: 100.0})
    with LLM(str(folder)) as llm:
        assert end not in llm.config.spec.eos_token_ids
        done = llm.generate("hello", params, use_tqdm=False)[0].outputs[0]
        assert (done.finish_reason, done.stop_reason, done.text) == ("stop", end, "")
        for _ in range(2):
            word = SamplingParams(temperature=0, max_tokens=5, logit_bias={0: 100.0}, stop_token_ids=[0, 92543, 92542])
            done = llm.generate("hello", word, use_tqdm=False)[0].outputs[0]
            assert (done.finish_reason, done.stop_reason) == ("stop", 0)
    # By identity: where an earlier test has configured our logger, pytest hands one record over twice.
    warnings = {id(record): record.getMessage() for record in caplog.records if "stop_token_ids" in record.getMessage()}
    assert len(warnings) == 1 and "0 ('!')" in next(iter(warnings.values()))


def test_refusals(folder: Path, tmp_path: Path) -> None:
    import json

    with pytest.raises(ConfigError, match=r"--mm-processor-kwargs: .*'max_pixels' is not known"):
        LLM(str(folder), mm_processor_kwargs={"max_pixels": 1})
    with LLM(str(folder)) as llm:
        bad = {"prompt": turn("<image>"), "multi_modal_data": {"image": picture(1)}}
        with pytest.raises(RequestError, match="max_dynamic_patch"):
            llm.generate({**bad, "mm_processor_kwargs": {"max_dynamic_patch": 0}}, GREEDY, use_tqdm=False)
        with pytest.raises(RequestError, match="2 image placeholders"):
            llm.generate({**bad, "prompt": turn("<image><image>")}, GREEDY, use_tqdm=False)
        assert llm.generate(bad, GREEDY, use_tqdm=False)[0].finished
    other = tiny.write_checkpoint(tmp_path)
    settings = json.loads((other / "config.json").read_text())
    for change, message in [
        ({"architectures": ["InternLM3ForCausalLM"]}, "'InternLM3ForCausalLM' is not supported; supported: internlm2"),
        ({"num_key_value_heads": 4}, "shape|rows"),
        ({"bias": True, "architectures": ["InternLM2ForCausalLM"]}, "not available yet: config.json: bias"),
    ]:
        text = {**settings["llm_config"], **change}
        (other / "config.json").write_text(json.dumps({**settings, "llm_config": text}))
        with pytest.raises(ConfigError, match=message) as caught:
            LLM(str(other))
        assert "\n" not in str(caught.value)
