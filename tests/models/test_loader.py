"""Loading: every way a folder can be wrong is one sentence that names the file and the tensor."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import tiny
from trifocal.errors import ConfigError
from trifocal.model_spec import ModelSpec
from trifocal.models.base import Model
from trifocal.models.loader import load_model, weight_slots

INDEX = "model.safetensors.index.json"
SHARDS = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]


def load(folder: Path, *, load_format: str = "auto", dtype: torch.dtype = torch.float32, seed: int = 0) -> Model:
    spec = ModelSpec.from_checkpoint(str(folder))
    return load_model(spec, dtype=dtype, device=torch.device("cpu"), load_format=load_format, seed=seed)


def edit(file: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.write_checkpoint(tmp_path / "whole", tokenizer=False)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return tiny.write_checkpoint(tmp_path / "sharded", num_shards=3, tied=False, tokenizer=False)


def test_every_tensor_arrives_in_its_slot(sharded: Path) -> None:
    model = load(sharded)
    expected = tiny.tensors(tiny.config(tied=False))
    slots = weight_slots(model)
    assert len(slots) == len(expected)
    for name, tensor in expected.items():
        assert torch.equal(slots[model.rename(name)], tensor), name
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())


def test_layouts_hold_the_same_weights(folder: Path, tmp_path: Path) -> None:
    nested = tiny.write_checkpoint(tmp_path / "nested", layout="nested")
    ours, theirs = load(folder).state_dict(), load(nested).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_weights_are_cast_and_tables_are_not(folder: Path) -> None:
    model = load(folder, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for buffer in model.buffers()} == {torch.float32}
    assert torch.get_default_dtype() == torch.float32


def test_files_without_an_index_are_read(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    for number in (0, 1):
        save_file({name: weights[name] for name in names[number::2]}, folder / f"part{number}.safetensors")
    whole = load(folder).state_dict()
    (folder / "model.safetensors").unlink()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in load(folder).state_dict().items())


def test_harmless_extras_are_ignored(folder: Path) -> None:
    extras = {"lm_head.weight": torch.zeros(3, 3), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)}
    edit(folder / "model.safetensors", lambda weights: weights.update(extras))
    load(folder)


def test_missing_tensor(folder: Path) -> None:
    edit(folder / "model.safetensors", lambda weights: weights.pop("model.norm.weight"))
    with pytest.raises(
        ConfigError, match=r"whole: tensor language_model\.norm\.weight is in none of the safetensors files"
    ):
        load(folder)


def test_missing_part_of_a_merged_layer(folder: Path) -> None:
    edit(folder / "model.safetensors", lambda weights: weights.pop("model.layers.1.self_attn.k_proj.bias"))
    with pytest.raises(ConfigError, match=r"layers\.1\.self_attn\.k_proj\.bias"):
        load(folder)


def test_missing_head(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    with pytest.raises(ConfigError, match=r"lm_head\.weight"):
        load(folder)


def test_unexpected_tensor(folder: Path) -> None:
    edit(folder / "model.safetensors", lambda weights: weights.update({"model.layers.7.mlp.x": torch.zeros(1)}))
    with pytest.raises(ConfigError, match=r"model\.safetensors: tensor model\.layers\.7\.mlp\.x is unknown to"):
        load(folder)


def test_wrong_shape(folder: Path) -> None:
    edit(folder / "model.safetensors", lambda weights: weights.update({"model.norm.weight": torch.zeros(63)}))
    with pytest.raises(ConfigError, match=r"model\.norm\.weight has shape \[63\], config\.json asks for \[64\]"):
        load(folder)


def test_tensor_in_two_files(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    save_file({"model.norm.weight": torch.zeros(64)}, folder / "b.safetensors")
    with pytest.raises(ConfigError, match=r"b\.safetensors: tensor .* was already loaded from whole/a"):
        load(folder)


def test_missing_shard(sharded: Path) -> None:
    (sharded / SHARDS[1]).unlink()
    with pytest.raises(ConfigError, match=f"sharded/{SHARDS[1]} is missing"):
        load(sharded)


def test_index_that_promises_too_much(sharded: Path) -> None:
    edit(sharded / SHARDS[2], lambda weights: weights.pop(sorted(weights)[0]))
    with pytest.raises(ConfigError, match=f"{SHARDS[2]}: tensor .* is missing; {INDEX} says"):
        load(sharded)


def test_broken_index(sharded: Path) -> None:
    (sharded / INDEX).write_text('{"weight_map": ["model.norm.weight"]}')
    with pytest.raises(ConfigError, match="weight_map"):
        load(sharded)


@pytest.mark.parametrize(("size", "message"), [(0, "is empty"), (5, "is not a readable"), (4000, "is not a readable")])
def test_truncated_file(folder: Path, size: int, message: str) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ConfigError, match=rf"whole/model\.safetensors {message}"):
        load(folder)


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"holds no \*\.safetensors file"):
        load(folder)


def test_dummy_weights_need_no_file_and_follow_the_seed(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    one, same, other = (load(folder, load_format="dummy", seed=seed).state_dict() for seed in (1, 1, 2))
    name = "language_model.layers.0.mlp.down_proj.weight"
    assert torch.equal(one[name], same[name]) and not torch.equal(one[name], other[name])
    assert all(tensor.isfinite().all() and tensor.std() > 0 for tensor in one.values())
    assert one["language_model.norm.weight"].min() > 0.8
