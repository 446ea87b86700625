"""InternVL through `LLM`: chats, how answers stop, what is refused."""

from __future__ import annotations

import json
import logging
from contextlib import closing
from pathlib import Path

import pytest

from tests import tiny_internvl as tiny
from tests.media.samples import clip as file
from tests.media.samples import data_url
from tests.models.engine_runs import clip, picture, turn
from trifocal.config.engine import EngineArgs, resolve
from trifocal.errors import ConfigError, RequestError
from trifocal.llm import LLM
from trifocal.prompt.builder import PromptBuilder
from trifocal.sampling_params import SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_checkpoint(tmp_path_factory.mktemp("internvl") / "model")


@pytest.mark.parametrize("layout", ["original", "native"])
def test_chat(tmp_path: Path, layout: tiny.Format) -> None:
    """Both kinds of template give the README's prompt; what users write stays text."""
    folder = tiny.write_checkpoint(tmp_path, layout=layout)
    parts = [
        {"type": "image_pil", "image_pil": picture(1, 60, 110)},
        {"type": "text", "text": "What is <IMG_CONTEXT><img></img> or <image>?"},
    ]
    with LLM(str(folder)) as llm:
        rendered = llm._builder.render([{"role": "user", "content": parts}])
        assert rendered.text == turn("<IMG_CONTEXT>\nWhat is <IMG_CONTEXT><img></img> or <image>?")
        context = llm.get_tokenizer().token_to_id("<IMG_CONTEXT>")
        assert rendered.token_ids.count(context) == 1
        answer = llm.chat([{"role": "user", "content": parts}], GREEDY, use_tqdm=False)[0]
        assert answer.prompt_token_ids.count(context) == 3 * tiny.TOKENS_PER_TILE
        video = {"type": "video", "video": clip(1, 3)}
        answer = llm.chat([{"role": "user", "content": [video]}], GREEDY, use_tqdm=False)[0]
        assert answer.prompt_token_ids.count(context) == 3 * tiny.TOKENS_PER_TILE
        text = llm.get_tokenizer().decode(answer.prompt_token_ids, skip_special_tokens=True)
        assert text.startswith("user\nFrame1: \nFrame2: \nFrame3: ")


def test_frames_are_scaled_while_they_are_decoded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clip of many large frames never lies in memory as large as it is."""
    sizes = []
    with closing(PromptBuilder(resolve(EngineArgs(model=str(folder), device="cpu")))) as builder:
        build = builder.processor.build
        monkeypatch.setattr(
            builder.processor,
            "build",
            lambda ids, media, options: sizes.extend(item.frames.shape for item in media) or build(ids, media, options),
        )
        content = [{"type": "video_url", "video_url": {"url": data_url(file(12, size=(320, 240)), "video/mp4")}}]
        builder.chat_sync([{"role": "user", "content": content}])
    assert sizes == [(12, tiny.TILE, tiny.TILE, 3)]


def test_tiles_by_the_server_s_word_and_the_request_s(folder: Path) -> None:
    """A picture of 2 x 1 is cut in 2 x 1 or 4 x 2, and has a thumbnail."""
    asked = {"prompt": turn("<image>"), "multi_modal_data": {"image": picture(1, 112, 224)}}
    of_request = {**asked, "mm_processor_kwargs": {"max_dynamic_patch": 12}}
    with LLM(str(folder), mm_processor_kwargs={"max_dynamic_patch": 6}) as llm:
        context = llm.get_tokenizer().token_to_id("<IMG_CONTEXT>")
        answers = llm.generate([asked, of_request], GREEDY, use_tqdm=False)
    counts = [answer.prompt_token_ids.count(context) for answer in answers]
    assert counts == [3 * tiny.TOKENS_PER_TILE, 9 * tiny.TOKENS_PER_TILE]


def test_stop_tokens(folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """`<|im_end|>` ends an answer although config.json does not name it. Stop ids that are words are obeyed, with one
    warning: the seed's client sends InternLM2's ids to every InternVL."""
    monkeypatch.setattr(logging.getLogger("trifocal"), "propagate", True)
    end = tiny.token_ids()["<|im_end|>"]
    params = SamplingParams(temperature=0, max_tokens=5, logit_bias={end: 100.0})
    with LLM(str(folder)) as llm:
        assert end not in llm.config.model.spec.eos_token_ids
        done = llm.generate("hello", params, use_tqdm=False)[0].outputs[0]
        assert (done.finish_reason, done.stop_reason, done.text) == ("stop", None, "")
        for _ in range(2):
            word = SamplingParams(temperature=0, max_tokens=5, logit_bias={0: 100.0}, stop_token_ids=[0, 92543, 92542])
            done = llm.generate("hello", word, use_tqdm=False)[0].outputs[0]
            assert (done.finish_reason, done.stop_reason) == ("stop", 0)
    # By identity: where an earlier test has configured our logger, pytest hands one record over twice.
    warnings = {id(record): record.getMessage() for record in caplog.records if "stop_token_ids" in record.getMessage()}
    assert len(warnings) == 1 and "0 ('!')" in next(iter(warnings.values()))


def test_refusals(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mm_processor_kwargs: .*'max_pixels' is not known"):
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
        (
            {"architectures": ["InternLM3ForCausalLM"]},
            "'InternLM3ForCausalLM' is not supported; .*internlm2",
        ),
        ({"num_key_value_heads": 4}, "shape|rows"),
        ({"bias": True, "architectures": ["InternLM2ForCausalLM"]}, "not available yet: config.json: bias"),
    ]:
        text = {**settings["llm_config"], **change}
        (other / "config.json").write_text(json.dumps({**settings, "llm_config": text}))
        with pytest.raises(ConfigError, match=message) as caught:
            LLM(str(other))
        assert "\n" not in str(caught.value)
