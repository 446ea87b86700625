"""Linear layers in shares: what ranks compute together is what one computes, in every format."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ranks import Alone, on_ranks
from trifocal.distributed import SOLO, Group
from trifocal.errors import ConfigError
from trifocal.kernels.cpu.library import load
from trifocal.kernels.cpu.ops import CpuKernels
from trifocal.layers.embedding import Embedding, OutputHead
from trifocal.layers.linear import PLAIN, GatedLinear, Heads, Linear, LinearMethod, MergedLinear, RowLinear
from trifocal.platforms.cpu_linear import BlocksLinear, Int8BlocksLinear
from trifocal.quant.awq import AwqLinear, pack_awq
from trifocal.quant.int4 import Int4Linear
from trifocal.quant.int8 import INT8

INPUTS, OUTPUTS = 64, {"q_proj": Heads(4, 16), "k_proj": Heads(2, 16), "v_proj": Heads(2, 16)}


def formats() -> dict[str, tuple[LinearMethod, torch.dtype]]:
    """The method and the type of activations of each."""
    found: dict[str, tuple[LinearMethod, torch.dtype]] = {
        "plain": (PLAIN, torch.float32),
        "int8": (INT8, torch.float32),
        "int4": (Int4Linear(16), torch.float32),
        "awq": (AwqLinear(16), torch.float32),
    }
    library = load()
    if library is not None:
        kernels = CpuKernels(library)
        found |= {
            "blocks": (BlocksLinear(kernels), torch.bfloat16),
            "int8 blocks": (Int8BlocksLinear(kernels), torch.float32),
        }
    return found


def checkpoint(layer: Linear) -> dict[str, Tensor]:
    """Random tensors of a whole layer, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    made = {}
    for name, slot in layer.weight_slots().items():
        if name.endswith(("qweight", "qzeros")):
            whole = torch.randint(0, 16, (slot.shape[0], 8 * slot.shape[1]), generator=generator)
            made[name] = pack_awq(whole)
        else:
            scale = 0.02 if name.endswith("scales") else 0.3
            made[name] = torch.randn(*slot.shape, generator=generator) * scale
    return made


def filled(layer: Linear, tensors: dict[str, Tensor]) -> Linear:
    """By the loader's rule: each slot has the shape of the whole tensor."""
    slots = layer.weight_slots()
    assert slots.keys() == tensors.keys()
    for name, slot in slots.items():
        assert slot.shape == tensors[name].shape
        slot.copy_(tensors[name])
    return layer


def in_type(dtype: torch.dtype, make: Callable[[], Linear]) -> Linear:
    torch.set_default_dtype(dtype)
    try:
        return make()
    finally:
        torch.set_default_dtype(torch.float32)


def alone(dtype: torch.dtype, kind: type[Any], *args: Any, **options: Any) -> tuple[Linear, list[list[Linear]]]:
    """A whole layer, and those of 2 and of 4 ranks (which exchange nothing), from one checkpoint."""
    whole = in_type(dtype, lambda: kind(*args, group=SOLO, **options))
    tensors = checkpoint(whole)
    shares = [
        [
            filled(in_type(dtype, lambda: kind(*args, group=Alone(rank, size), **options)), tensors)  # noqa: B023
            for rank in range(size)
        ]
        for size in (2, 4)
    ]
    return filled(whole, tensors), shares


def rows(dtype: torch.dtype, size: int) -> Tensor:
    return torch.randn(5, size, generator=torch.Generator().manual_seed(1)).to(dtype)


def assert_same(ours: Tensor, expected: Tensor, name: str) -> None:
    """Bit for bit by kernels; torch's order of sums depends on a product's size, and so does how it vectorises SiLU."""
    exact = "blocks" in name
    assert torch.equal(ours, expected) if exact else (ours - expected).abs().max() < 1e-5 * expected.abs().max(), name


@torch.inference_mode()
def test_outputs_in_shares() -> None:
    """They are those of one rank. With four ranks two have the same key head."""
    for name, (method, dtype) in formats().items():
        for bias in (False, True):
            whole, by_size = alone(dtype, MergedLinear, INPUTS, OUTPUTS, bias=bias, method=method)
            x = rows(dtype, INPUTS)
            q, k, v = whole(x).split([64, 32, 32], dim=-1)
            for shares in by_size:
                size = len(shares)
                sizes = [64 // size, max(16, 32 // size), max(16, 32 // size)]
                ours = [share(x).split(sizes, dim=-1) for share in shares]
                assert_same(torch.cat([each[0] for each in ours], -1), q, name)
                for index, expected in ((1, k), (2, v)):
                    heads = [each[index] for each in ours]
                    assert_same(torch.cat(heads[:: max(1, size // 2)], -1), expected, name)
                    assert size == 2 or (torch.equal(heads[0], heads[1]) and torch.equal(heads[2], heads[3]))


@torch.inference_mode()
def test_inputs_in_shares() -> None:
    """Sums over ranks; int8 rounds activations by the share, so it is near alone. The bias counts once."""
    for name, (method, dtype) in formats().items():
        for bias in (False, True):
            whole, by_size = alone(dtype, RowLinear, INPUTS, 24, bias=bias, method=method)
            x = rows(dtype, INPUTS)
            expected = whole(x).float()
            tolerance = 0.02 if name.startswith("int8") or dtype == torch.bfloat16 else 1e-5
            for shares in by_size:
                parts = [share(part) for share, part in zip(shares, x.chunk(len(shares), dim=-1), strict=True)]
                total = torch.stack([part.float() for part in parts]).sum(0)
                assert (total - expected).abs().max() < tolerance * expected.abs().max(), name


@torch.inference_mode()
def test_gates_in_shares() -> None:
    """Each rank has gates and values that belong together."""
    for name, (method, dtype) in formats().items():
        parts = {"gate_proj": 96, "up_proj": 96}
        whole, by_size = alone(dtype, GatedLinear, INPUTS, parts, bias=True, method=method)
        for rows_of_step in (3, 40):  # kernels gate many rows otherwise
            x = rows(dtype, INPUTS).repeat(8, 1)[:rows_of_step]
            for shares in by_size:
                assert_same(torch.cat([share(x) for share in shares], -1), whole(x), name)


@pytest.mark.parametrize("size", [2, 4])
def test_a_vocabulary_in_shares(size: int) -> None:
    """One that does not divide: rows of any rank are found by all, and rank 0 has the scores of all tokens."""
    ids, hidden = torch.tensor([0, 9, 10, 4, 5, 8, 3, 9]), rows(torch.float32, INPUTS)
    for method in (PLAIN, INT8):
        table, head = Embedding(11, INPUTS), OutputHead(INPUTS, 11)
        tensors = checkpoint(table)
        for layer in (table, head):
            layer.use(method)
            filled(layer, tensors)

        def work(group: Group, method: LinearMethod = method, tensors: dict[str, Tensor] = tensors) -> list[Tensor]:
            shares = Embedding(11, INPUTS, group), OutputHead(INPUTS, 11, group)
            for share in shares:
                share.use(method)
                assert share.out_features == -(-11 // size)
                filled(share, tensors)
            return [shares[0](ids), shares[0].as_head(hidden), shares[1](hidden)]

        results = on_ranks(size, work)
        assert all(torch.equal(found, table(ids)) for found, *_ in results)
        expected = head(hidden)
        torch.testing.assert_close(results[0][1], expected)
        torch.testing.assert_close(results[0][2], expected)


def test_what_cannot_be_shared_is_refused_by_name() -> None:
    group = Alone(1, 4)
    with pytest.raises(ConfigError, match="--tensor-parallel-size 4: 6 outputs of up_proj cannot be shared evenly"):
        MergedLinear(8, {"gate_proj": 8, "up_proj": 6}, bias=False, group=group)
    with pytest.raises(ConfigError, match="4: 3 heads of k_proj cannot"):
        MergedLinear(8, {"k_proj": Heads(3, 2)}, bias=False, group=group)
    with pytest.raises(ConfigError, match="4: 10 inputs of a linear layer cannot"):
        RowLinear(10, 8, bias=False, group=group)
