"""The committed checkpoint folder: its size, its format, and that it answers its sample questions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from tools.demo_model.backends import TransformersBackend, prompt_row
from tools.demo_model.checkpoint import model_config, new_model, original_tensors
from tools.demo_model.evaluate import evaluate
from tools.demo_model.items import Item, folder_items
from tools.demo_model.sample_media import entries
from tools.demo_model.tokenizer import train_tokenizer

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "trifocal/demo/model"
SAMPLES = ROOT / "trifocal/demo/samples"


@pytest.fixture(scope="module")
def backend() -> TransformersBackend:
    return TransformersBackend(MODEL)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(MODEL / "tokenizer.json"))


def test_the_folder_keeps_within_its_limits() -> None:
    size = sum(path.stat().st_size for folder in (MODEL, SAMPLES) for path in folder.iterdir())
    assert size <= 20_000_000
    with safe_open(MODEL / "model.safetensors", "pt") as file:
        names = list(file.keys())
        parameters = sum(file.get_tensor(name).numel() for name in names)
    assert parameters <= 8_000_000
    assert {name.split(".")[0] for name in names} == {"visual", "model"}
    assert "lm_head.weight" not in names


def test_the_config_is_the_recipe(tokenizer: Tokenizer) -> None:
    config = json.loads((MODEL / "config.json").read_text())
    assert config == model_config(tokenizer)
    assert "text_config" not in config
    assert config["rope_scaling"] == {"type": "mrope", "mrope_section": [4, 6, 6]}


def test_the_reference_loads_every_tensor(backend: TransformersBackend) -> None:
    assert backend.model.config.text_config.rope_parameters["mrope_section"] == [4, 6, 6]
    assert backend.model.config.vision_config.fullatt_block_indexes == [2, 4, 5]
    with safe_open(MODEL / "model.safetensors", "pt") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    loaded = original_tensors(backend.model, torch.bfloat16)
    assert stored.keys() == loaded.keys()
    assert all(torch.equal(stored[name], loaded[name]) for name in stored)


def test_a_fresh_model_has_the_stored_shapes(tokenizer: Tokenizer) -> None:
    fresh = original_tensors(new_model(model_config(tokenizer)), torch.bfloat16)
    with safe_open(MODEL / "model.safetensors", "pt") as file:
        assert {name: list(tensor.shape) for name, tensor in fresh.items()} == {
            name: file.get_slice(name).get_shape() for name in file.keys()  # noqa: SIM118
        }  # fmt: skip


def test_the_tokenizer_is_the_one_the_generator_trains(tokenizer: Tokenizer) -> None:
    assert train_tokenizer().to_str() == tokenizer.to_str()


@pytest.mark.parametrize("text", ["What is the image content?", "Grüße, 北京 2026!\n\t<b>", "é", "🙂 x = 10**3"])
def test_any_text_survives_the_tokenizer(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids) == text
    digits = [token for token in tokenizer.encode("2026").tokens if token.isdigit()]
    assert digits == list("2026")


def test_the_chat_template_renders_what_the_model_was_trained_on(tokenizer: Tokenizer) -> None:
    for item in (folder_items(SAMPLES)[0], folder_items(SAMPLES)[-1], folder_items(SAMPLES)[-4]):
        history = (("What is this?", "A star."),)
        for variant in (item, Item(item.kind, item.question, item.answer, item.images, item.clip, history)):
            loaded = AutoTokenizer.from_pretrained(MODEL)
            text = loaded.apply_chat_template(variant.messages(), add_generation_prompt=True, tokenize=False)
            row = prompt_row(tokenizer, variant)
            pads = {tokenizer.token_to_id(name) for name in ("<|image_pad|>", "<|video_pad|>")}
            short = [
                token for k, token in enumerate(row.ids) if token not in pads or row.ids[k - 1] not in pads
            ]  # fmt: skip
            assert tokenizer.encode(text, add_special_tokens=False).ids == short


def test_the_stop_tokens_are_named(tokenizer: Tokenizer) -> None:
    generation = json.loads((MODEL / "generation_config.json").read_text())
    assert generation["do_sample"] is False
    ends = [tokenizer.token_to_id(name) for name in ("<|im_end|>", "<|endoftext|>")]
    assert generation["eos_token_id"] == ends


def test_the_sample_file_lists_the_samples() -> None:
    assert json.loads((SAMPLES / "samples.json").read_text()) == entries()
    assert any(entry["question"] == "What is the image content?" for entry in entries())
    assert any(len(entry["media"]) == 2 for entry in entries())


def test_every_sample_question_is_answered_right(backend: TransformersBackend) -> None:
    outcomes = evaluate(backend, folder_items(SAMPLES))
    assert [(one.item.question, one.given) for one in outcomes if not one.is_right] == []


def test_text_alone_gets_a_plain_answer(backend: TransformersBackend) -> None:
    hello, lost = backend.answers([Item("text_only", "Who are you?", ""), Item("text_only", "What shape is this?", "")])
    assert "demonstration model of Trifocal" in hello
    assert lost == "I see no picture. Please send a picture or a clip."
