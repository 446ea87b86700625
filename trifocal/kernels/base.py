"""The operations of layers that a device may have kernels for, in plain torch: what every kernel is compared with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class Kernels:
    """Operations without state. A device's kernels override those it does better; `TORCH` runs everywhere.

    A row's result never depends on the rows beside it but by rounding.
    """

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x [..., in], weight [out, in], bias [out] -> [..., out]."""
        return F.linear(x, weight, bias)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x [..., size] -> the same shape: normed in float32, cast to the dtype of x, and only then times weight."""
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        return (wide * scale).to(x.dtype) * weight

    def add_rms_norm(
        self, x: Tensor, delta: Tensor, scale: float, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """x and delta [rows, size] -> x + scale * delta, and its `rms_norm`."""
        total = x + delta * scale  # not torch.add(…, alpha=scale): that one rounds a bfloat16 tensor's scale first
        return total, self.rms_norm(total, weight, eps)

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        """[rows, 2 * size], the gate's half first -> silu(gate) * up, [rows, size]."""
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x [rows, heads, d], cos and sin [rows, 1, d / 2] -> halves of each head turned against each other (NeoX)."""
        first, second = x.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


TORCH = Kernels()
