"""The two-layer MLP of vision transformers, and the gated one of language models."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from trifocal.distributed import SOLO, Group
from trifocal.errors import ConfigError
from trifocal.layers.linear import GatedLinear, Linear, MergedLinear, RowLinear

# Of gates, by transformers' names; SiLU is a kernel's work (`GatedLinear`).
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
}


class GeluMLP(nn.Module):
    """fc2(gelu(fc1(x))), both with bias; `approximate` as in `torch.nn.functional.gelu`."""

    def __init__(
        self, hidden_size: int, intermediate_size: int, *, approximate: Literal["none", "tanh"] = "none"
    ) -> None:
        super().__init__()
        self.fc1 = Linear(hidden_size, intermediate_size, bias=True)
        self.fc2 = Linear(intermediate_size, hidden_size, bias=True)
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        """[rows, hidden_size] -> [rows, hidden_size]."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x), approximate=self.approximate))
        return out


class GatedMLP(nn.Module):
    """down(activation(gate(x)) * up(x)); `activation` is silu, gelu or gelu_pytorch_tanh. Raises `ConfigError`."""

    def __init__(
        self, hidden_size: int, intermediate_size: int, activation: str = "silu", *, bias: bool = False,
        group: Group = SOLO,
    ) -> None:  # fmt: skip
        super().__init__()
        if activation != "silu" and activation not in _ACTIVATIONS:
            raise ConfigError(
                f"config.json: hidden_act {activation!r} is not supported; supported: "
                f"{', '.join(['silu', *_ACTIVATIONS])}"
            )
        self.activation = _ACTIVATIONS.get(activation)
        parts = {"gate_proj": intermediate_size, "up_proj": intermediate_size}
        kind = GatedLinear if self.activation is None else MergedLinear
        self.gate_up_proj = kind(hidden_size, parts, bias=bias, group=group)
        self.down_proj = RowLinear(intermediate_size, hidden_size, bias=bias, group=group)

    def forward(self, x: Tensor) -> Tensor:
        """[n, hidden_size] -> [n, hidden_size]."""
        gated: Tensor = self.gate_up_proj(x)
        if self.activation is not None:
            gate, up = gated.chunk(2, dim=-1)
            gated = self.activation(gate) * up
        out: Tensor = self.down_proj(gated)
        return out
