"""The operations of layers that a device may have kernels for, in plain torch: what every kernel is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from trifocal.kernels.int4 import Int4Weight


@dataclass(frozen=True)
class Draws:
    """How each of m rows of logits gets its token; tensors [m]. `worker.sampler` defines the arithmetic.

    `scale` float32: log2(e) / temperature; 0 takes the most likely token, and the row's other numbers mean nothing.
    `floor` float32: min_p's logarithm to base 2. `top_k` int64: the vocabulary's size where there is no limit.
    `top_p` and `noise` int64: numbers from 0 to 1 in units of 2**-53.
    """

    scale: Tensor
    floor: Tensor
    top_k: Tensor
    top_p: Tensor
    noise: Tensor

    def of(self, rows: Tensor) -> Draws:
        return Draws(self.scale[rows], self.floor[rows], self.top_k[rows], self.top_p[rows], self.noise[rows])


@dataclass(frozen=True)
class Likely:
    """What log-probabilities of a row of logits are made of.

    The largest logit (no number where one is none), the sum of weights at temperature 1, the chosen token's logit and
    its rank from 1, the largest logits in order, and their ids.
    """

    largest: float
    total: int
    own: float
    rank: int
    values: list[float]
    ids: list[int]


class Kernels:
    """Operations without state. A device's kernels override those it does better; `TORCH` runs everywhere.

    A row's result never depends on the rows beside it but by rounding. Kernels for a device's own layout of weights are
    no part of this: its linear methods call them (`Platform.linear_methods`).
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

    def linear_int4(self, x: Tensor, weight: Int4Weight, bias: Tensor | None) -> Tensor:
        """x [..., in] times the weight, plus bias."""
        return F.linear(x, self.expand_int4(weight, x.dtype), bias)

    def linear_int4_int8(self, x: Tensor, weight: Int4Weight, bias: Tensor | None) -> Tensor:
        """`linear_int4` with activations in int8: those of a row that share a scale of the weight share one as well."""
        groups = x.reshape(*x.shape[:-1], x.shape[-1] // weight.group, weight.group).float()
        most = groups.abs().amax(-1, keepdim=True)
        whole = (groups * torch.where(most > 0, 127 / most, 0.0)).round()
        rounded = (whole * (most / 127)).reshape(x.shape)
        wide = F.linear(rounded, self.expand_int4(weight, torch.float32), None if bias is None else bias.float())
        return wide.to(x.dtype)

    def expand_int4(self, weight: Int4Weight, dtype: torch.dtype) -> Tensor:
        """[out, in] in `dtype`, rounded once."""
        q, scale, zero = weight.unpack()
        groups = q.view(*scale.shape, -1).float()
        wide: Tensor = (groups - zero[..., None].float()) * scale[..., None].float()
        return wide.view(q.shape).to(dtype)

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

    def norm_heads(self, x: Tensor, num_first: int, first: Tensor, other: Tensor, eps: float) -> Tensor:
        """x [rows, heads, d] -> `rms_norm` of each head, with weight `first` [d] for so many, `other` for the rest."""
        heads, others = x[:, :num_first], x[:, num_first:]
        return torch.cat((self.rms_norm(heads, first, eps), self.rms_norm(others, other, eps)), dim=1)

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        """[rows, 2 * size], the gate's half first -> silu(gate) * up, [rows, size]."""
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x [rows, heads, d], cos and sin [rows, 1, d / 2] -> halves of each head turned against each other (NeoX)."""
        first, second = x.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)

    def segment_attention(self, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor) -> Tensor | None:
        """q, k, v [n, heads, d] -> [n, heads, d]; rows attend within segments of `lengths`, int64 [count] on the CPU.

        None where there is no kernel for it: `attention.vision` knows what torch does best.
        """
        return None

    def choose(self, logits: Tensor, vocab: int, draws: Draws | None) -> tuple[Tensor, Tensor] | None:
        """Of each row of logits [m, vocab or more] a token, int64 [m], and the largest logit: no number if one is none.

        Without `draws` the tokens are the most likely ones. Of rows without finite probabilities they are 0. None where
        there is no kernel for it: `worker.sampler` knows what torch does.
        """
        return None

    def likely(
        self, logits: Tensor, vocab: int, rows: Sequence[int], chosen: Sequence[int], counts: Sequence[int]
    ) -> list[Likely] | None:  # fmt: skip
        """For some rows, with the token that each chose and how many of the largest logits it wants; None as above."""
        return None


TORCH = Kernels()
