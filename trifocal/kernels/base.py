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

    def linear_int8(self, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        """x [..., in] times int8 weight [out, in] times float32 scale [out], plus bias.

        Each row of x becomes int8 too, by its own scale; the products are exact integers.
        """
        rows = x.reshape(-1, x.shape[-1]).float()
        most = rows.abs().amax(-1, keepdim=True)
        inverse = torch.where((most > 0) & most.isfinite(), torch.full_like(most, 127) / most, 0.0)
        whole = (rows.nan_to_num(0.0) * inverse).round().to(torch.int8)
        y = torch._int_mm(whole, weight.t()).float() * scale * (most / 127)
        if bias is not None:
            y += bias.float()
        return y.to(x.dtype).view(*x.shape[:-1], len(weight))

    def linear_int4(
        self, x: Tensor, weight: Tensor, scale: Tensor, zero: Tensor, bias: Tensor | None
    ) -> Tensor:  # fmt: skip
        """x [..., in] times (weight - zero) * scale, by groups of inputs, plus bias.

        weight uint8 [out, in / 2] as `pack_int4` makes it, scale float16 and zero uint8 [groups, out].
        """
        return F.linear(x, self.expand_int4(weight, scale, zero, x.dtype), bias)

    def expand_int4(self, weight: Tensor, scale: Tensor, zero: Tensor, dtype: torch.dtype) -> Tensor:
        """The weight of `linear_int4` as [out, in] in `dtype`, rounded once."""
        q = unpack_int4(weight).view(len(weight), len(scale), -1)
        wide = (q.float() - zero.t()[..., None].float()) * scale.t()[..., None].float()
        return wide.flatten(1).to(dtype)

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


_INT4_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # which weight of eight lies in each nibble of a 32-bit word, low end first


def pack_int4(q: Tensor) -> Tensor:
    """Integers 0 .. 15 [out, in] as uint8 [out, in / 2], in the order in which the kernels take them apart."""
    nibbles = q.to(torch.uint8).view(len(q), -1, 8)[..., list(_INT4_ORDER)].view(len(q), -1, 2)
    return nibbles[..., 0] | nibbles[..., 1] << 4


def unpack_int4(packed: Tensor) -> Tensor:
    """The inverse of `pack_int4`: uint8 [out, in]."""
    nibbles = torch.stack((packed & 15, packed >> 4), dim=-1).view(len(packed), -1, 8)
    return nibbles[..., [_INT4_ORDER.index(weight) for weight in range(8)]].flatten(1)


TORCH = Kernels()
