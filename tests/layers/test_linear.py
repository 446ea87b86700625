"""Linear layers, norms, activation and embedding against torch's own."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from trifocal.layers.embedding import Embedding
from trifocal.layers.linear import GatedLinear, Linear, MergedLinear
from trifocal.layers.norm import RMSNorm


def test_merged_parts_are_views_of_one_weight() -> None:
    layer = MergedLinear(8, {"q": 6, "k": 2, "v": 4}, bias=True)
    parts = {"q": torch.nn.Linear(8, 6), "k": torch.nn.Linear(8, 2), "v": torch.nn.Linear(8, 4)}
    slots = layer.weight_slots()
    assert sorted(slots) == ["k.bias", "k.weight", "q.bias", "q.weight", "v.bias", "v.weight"]
    with torch.no_grad():
        for name, part in parts.items():
            slots[f"{name}.weight"].copy_(part.weight)
            slots[f"{name}.bias"].copy_(part.bias)
    x = torch.randn(5, 8)
    expected = torch.cat([parts[name](x) for name in ("q", "k", "v")], -1)
    torch.testing.assert_close(layer(x), expected)


def test_linear_without_bias() -> None:
    layer = Linear(3, 2, bias=False)
    assert [name for name, _ in layer.named_parameters()] == ["weight"]
    layer.weight.copy_(torch.tensor([[1.0, 2, 3], [4, 5, 6]]))
    assert layer(torch.tensor([[1.0, 0, 1]])).tolist() == [[4.0, 10.0]]


def test_rms_norm_multiplies_after_the_cast() -> None:
    x, norm = torch.randn(7, 32), RMSNorm(32, 1e-6)
    norm.weight.uniform_(0.5, 1.5)
    torch.testing.assert_close(norm(x), F.rms_norm(x, (32,), norm.weight, 1e-6))
    half, weight = x.bfloat16(), norm.weight.bfloat16()
    norm.weight.data = weight
    wide = half.float() * torch.rsqrt(half.float().pow(2).mean(-1, keepdim=True) + 1e-6)
    assert torch.equal(norm(half), wide.bfloat16() * weight)
    assert not torch.equal(norm(half), (wide * weight.float()).bfloat16())  # the other order differs


def test_gated_linear_gates_with_its_first_part() -> None:
    gated = GatedLinear(6, {"gate": 5, "up": 5}, bias=True)
    for parameter in gated.parameters():
        parameter.normal_()
    x = torch.randn(3, 6)
    gate, up = (x @ gated.weight.T + gated.bias).split(5, dim=1)
    torch.testing.assert_close(gated(x), F.silu(gate) * up)


def test_embedding_is_its_own_head() -> None:
    table = Embedding(6, 4)
    table.weight.normal_()
    ids = torch.tensor([4, 1])
    assert torch.equal(table(ids), table.weight[ids])
    torch.testing.assert_close(table.as_head(table(ids)), table(ids) @ table.weight.T)
