"""A language model alone, served: chats and prompts through the server and offline; media and their options refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest

from tests import tiny_text
from tests.api.helpers import MODEL, ask, image_part, launch, picture
from trifocal.config.engine import EngineArgs, resolve
from trifocal.errors import ConfigError, RequestError
from trifocal.llm import LLM
from trifocal.sampling_params import SamplingParams

TEXT = "How many circles are there?"
GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_text.write_checkpoint(tmp_path_factory.mktemp("text") / "model", "mistral", sliding_window=12)


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with LLM(str(folder)) as made:
        yield made


def test_the_server(folder: Path, llm: LLM, tmp_path: Path) -> None:
    """The answers of `LLM`, by OpenAI's client; a picture is a 400 that names it, and harms nobody."""
    chat = llm.chat([{"role": "user", "content": TEXT}], GREEDY, use_tqdm=False)[0].outputs[0].text
    completion = llm.generate(TEXT, GREEDY, use_tqdm=False)[0].outputs[0].text
    running = launch(folder, tmp_path / "log")
    try:
        running.wait_ready()
        fields = {"model": MODEL, "temperature": 0, "max_tokens": 8, "extra_body": {"ignore_eos": True}}
        with openai.OpenAI(base_url=f"{running.url}/v1", api_key="-", max_retries=0, timeout=60) as client:
            assert [model.id for model in client.models.list().data] == [MODEL]
            assert client.completions.create(prompt=TEXT, **fields).choices[0].text == completion
            for content in (TEXT, [{"type": "text", "text": TEXT}]):
                messages = [{"role": "user", "content": content}]
                assert client.chat.completions.create(messages=messages, **fields).choices[0].message.content == chat
                parts = client.chat.completions.create(messages=messages, stream=True, **fields)
                assert "".join(part.choices[0].delta.content or "" for part in parts) == chat
            with pytest.raises(
                openai.BadRequestError, match=r"messages\[0\]\.content\[\d\]: this model takes text only"
            ):
                client.chat.completions.create(messages=ask(image_part(picture())), **fields)
            with pytest.raises(openai.BadRequestError, match="max_pixels: this model takes text only"):
                more = {"ignore_eos": True, "mm_processor_kwargs": {"max_pixels": 5000}}
                client.chat.completions.create(messages=messages, **fields | {"extra_body": more})
        assert httpx.get(f"{running.url}/health").status_code == 200
    finally:
        assert running.stop() == 0


def test_offline_refusals(llm: LLM) -> None:
    image = np.zeros((28, 28, 3), np.uint8)
    for modality, media in (("image", image), ("video", np.stack([image] * 2))):
        where = rf"multi_modal_data\['{modality}'\]\[0\]: this model takes text only"
        with pytest.raises(RequestError, match=where):
            llm.generate({"prompt": TEXT, "multi_modal_data": {modality: media}}, GREEDY, use_tqdm=False)
    with pytest.raises(RequestError, match=r"content\[1\]: this model takes text only"):
        content = [{"type": "text", "text": TEXT}, {"type": "image_pil", "image_pil": image}]
        llm.chat([{"role": "user", "content": content}], GREEDY, use_tqdm=False)


def test_flags_about_media(folder: Path) -> None:
    """None is needed; one that asks for media is refused."""
    for limits in ({"image": 0}, {"image": 0, "video": 0, "audio": 0}, {}):
        config = resolve(EngineArgs(model=str(folder), limit_mm_per_prompt=limits))
        assert set(config.media.limit_mm_per_prompt.values()) == {0}
    with pytest.raises(ConfigError, match="--limit-mm-per-prompt: image 2: this model takes text only"):
        resolve(EngineArgs(model=str(folder), limit_mm_per_prompt={"image": 2}))
    with pytest.raises(ConfigError, match="mm_processor_kwargs: max_pixels: this model takes text only"):
        LLM(str(folder), mm_processor_kwargs={"max_pixels": 9000})


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_rounded_while_loading(folder: Path, llm: LLM, quantization: str) -> None:
    """Formats of weights are not the family's affair; that the answer is another one shows that they are there."""
    prompts = [TEXT, "The quick brown fox"]
    with LLM(str(folder), quantization=quantization) as rounded:
        answers = [answer.outputs[0].token_ids for answer in rounded.generate(prompts, GREEDY, use_tqdm=False)]
        again = [rounded.generate(prompt, GREEDY, use_tqdm=False)[0].outputs[0].token_ids for prompt in prompts]
    plain = [answer.outputs[0].token_ids for answer in llm.generate(prompts, GREEDY, use_tqdm=False)]
    assert answers == again and answers != plain


def test_longrope_and_windows_together(tmp_path: Path) -> None:
    """Phi-3 as released has both; prompts that cross the border of longrope are computed anew."""
    folder = tiny_text.write_checkpoint(tmp_path / "model", "phi3", sliding_window=9)
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    prompts = [TEXT * count for count in (1, 2, 3)]
    with LLM(str(folder)) as one:
        together = [answer.outputs[0].token_ids for answer in one.generate(prompts, params, use_tqdm=False)]
    with LLM(str(folder), max_num_batched_tokens=16, block_size=16, enable_prefix_caching=False) as other:
        alone = [other.generate(prompt, params, use_tqdm=False)[0].outputs[0].token_ids for prompt in prompts]
    assert together == alone
