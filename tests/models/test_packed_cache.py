"""The packed cache gives the same weights without the checkpoint, and never those of another one."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import tiny
from tests.ranks import Alone
from trifocal.distributed import SOLO, Group
from trifocal.kernels.base import TORCH, Kernels
from trifocal.kernels.cpu.library import load as load_library
from trifocal.kernels.cpu.ops import CpuKernels
from trifocal.model_spec import ModelSpec, Quantization
from trifocal.models import loader
from trifocal.models.base import Model
from trifocal.platforms.cpu_linear import CpuLinearMethods
from trifocal.quant.methods import METHODS


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    load_library()  # compiled where it always is
    monkeypatch.setenv("TRIFOCAL_CACHE_ROOT", str(tmp_path / "cache"))
    return tmp_path / "cache" / "weights"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.write_checkpoint(tmp_path / "whole", tokenizer=False)


def load(
    folder: Path, method: str | None = None, kernels: Kernels = TORCH, group: Group = SOLO, packed_cache: bool = True
) -> Model:
    return loader.load_model(
        ModelSpec.from_checkpoint(str(folder)), dtype=torch.bfloat16, device=torch.device("cpu"), load_format="auto",
        seed=0, quantization=Quantization(method) if method else None, kernels=kernels,
        methods=CpuLinearMethods(kernels) if isinstance(kernels, CpuKernels) else METHODS, group=group,
        packed_cache=packed_cache,
    )  # fmt: skip


def forbid_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the checkpoint was read")

    monkeypatch.setattr(loader, "load_weights", refuse)


def assert_same(ours: Model, theirs: Model) -> None:
    one, other = dict(ours.named_parameters()), dict(theirs.named_parameters())
    assert one.keys() == other.keys()
    for name, parameter in one.items():
        assert parameter.dtype == other[name].dtype
        assert torch.equal(parameter.view(-1).view(torch.uint8), other[name].view(-1).view(torch.uint8)), name


@pytest.mark.parametrize("method", [None, "int8", "int4"])
@pytest.mark.parametrize("in_blocks", [False, True])
def test_the_second_load_reads_no_checkpoint(
    folder: Path, monkeypatch: pytest.MonkeyPatch, method: str | None, in_blocks: bool
) -> None:
    library = load_library() if in_blocks else None
    if in_blocks and library is None:
        pytest.skip("no kernels here")
    kernels = CpuKernels(library) if library else TORCH
    first = load(folder, method, kernels)
    forbid_reading(monkeypatch)
    second = load(folder, method, kernels)
    assert_same(first, second)
    assert not second.training and not any(parameter.requires_grad for parameter in second.parameters())


def test_formats_do_not_meet(folder: Path, cache: Path) -> None:
    load(folder)
    load(folder, "int8")
    load(folder, "int4")
    assert len(list(cache.iterdir())) == 3


def test_ranks_do_not_meet(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = [load(folder, group=Alone(rank, 2)) for rank in range(2)]
    assert len(list(cache.iterdir())) == 2
    forbid_reading(monkeypatch)
    for rank in range(2):
        assert_same(load(folder, group=Alone(rank, 2)), first[rank])


def test_a_changed_checkpoint_is_read_again(folder: Path, cache: Path) -> None:
    load(folder)
    [before] = cache.iterdir()
    file = folder / "model.safetensors"
    weights = {name: tensor + 1 for name, tensor in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    os.utime(file, ns=(1, 1))
    changed = load(folder)
    [after] = cache.iterdir()
    assert after != before
    assert_same(changed, load(folder))
    parameters = dict(changed.named_parameters())
    [norm] = [name for name in parameters if name == changed.rename("model.norm.weight")]
    assert torch.equal(parameters[norm], weights["model.norm.weight"].bfloat16())


@pytest.mark.parametrize("harm", ["cut", "other"])
def test_a_broken_file_is_made_again(folder: Path, cache: Path, caplog: pytest.LogCaptureFixture, harm: str) -> None:
    first = load(folder)
    [file] = cache.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] if harm == "cut" else bytes(len(whole)))
    with caplog.at_level(logging.WARNING):
        assert_same(load(folder), first)
    assert "incomplete" in caplog.text
    assert file.read_bytes() == whole


def test_where_nothing_can_be_written_the_model_loads(
    folder: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.parent.mkdir()
    cache.write_text("not a folder")
    with caplog.at_level(logging.WARNING):
        load(folder)
    assert "packed weights" in caplog.text


def test_nothing_is_kept_unless_asked_for(folder: Path, cache: Path) -> None:
    load(folder, packed_cache=False)
    assert not cache.exists()
