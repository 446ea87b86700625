"""Weights in int4 by groups of inputs, (q - zero) * scale; made from a plain checkpoint while it is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trifocal.kernels.base import pack_int4
from trifocal.quant.base import LinearMethod, Slot, register

if TYPE_CHECKING:
    from trifocal.layers.linear import Linear

GROUPS = (128, 64, 32)


class Int4Linear(LinearMethod):
    """weight uint8 [out, in / 2] (see `pack_int4`), scale float16 and zero uint8 [in / group, out]."""

    def __init__(self, group: int) -> None:
        self.group = group

    def create(self, layer: Linear, in_features: int, out_features: int, bias: bool) -> None:
        """Register `weight`, `scale`, `zero` and `bias`."""
        groups = in_features // self.group
        register(layer, "weight", torch.empty(out_features, in_features // 2, dtype=torch.uint8))
        register(layer, "scale", torch.empty(groups, out_features, dtype=torch.float16))
        register(layer, "zero", torch.empty(groups, out_features, dtype=torch.uint8))
        register(layer, "bias", torch.empty(out_features) if bias else None)

    def slots(self, layer: Linear, start: int, size: int) -> dict[str, Slot]:
        """The plain `weight` is rounded as it comes in."""
        slots: dict[str, Slot] = {"weight": _Rounding(*parts(layer, start, size), self.group)}
        if layer.bias is not None:
            slots["bias"] = layer.bias[start : start + size]
        return slots

    def apply(self, layer: Linear, x: Tensor) -> Tensor:
        """Activations stay as they are."""
        return layer.kernels.linear_int4(x, layer.weight, layer.scale, layer.zero, layer.bias)

    def look_up(self, layer: Linear, ids: Tensor) -> Tensor:
        """Tables of embeddings are kept in int8 at least."""
        raise NotImplementedError


def parts(layer: Linear, start: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Views of weight, scale and zero of output features `start .. start + size`."""
    rows = slice(start, start + size)
    return layer.weight[rows], layer.scale[:, rows], layer.zero[:, rows]


class _Rounding:
    """Takes float rows [size, in] in and keeps int4."""

    def __init__(self, weight: Tensor, scale: Tensor, zero: Tensor, group: int) -> None:
        self._weight, self._scale, self._zero, self._group = weight, scale, zero, group
        self.shape = torch.Size((len(weight), 2 * weight.shape[1]))

    def copy_(self, values: Tensor) -> None:
        """Round to the nearest of 16 steps between the least and the greatest of each group (0 among them)."""
        q, scale, zero = round_to_int4(values, self._group)
        self._weight.copy_(pack_int4(q))
        self._scale.copy_(scale.t())
        self._zero.copy_(zero.t())


def round_to_int4(weight: Tensor, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """weight [out, in] -> q uint8 [out, in], scale float16 and zero uint8 [out, in / group], as AWQ rounds."""
    grouped = weight.float().view(len(weight), -1, group)
    least, most = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)
    scale = ((most - least) / 15).clamp(min=1e-5).half()
    wide = scale.float()
    zero = (-least / wide).round_().clamp_(0, 15)
    q = (grouped / wide[..., None] + zero[..., None]).round_().clamp_(0, 15)
    return q.to(torch.uint8).view(weight.shape), scale, zero.to(torch.uint8)
