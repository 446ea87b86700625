"""Weights in int4 by groups of inputs, (q - zero) * scale; made from a plain checkpoint while it is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trifocal.kernels.int4 import Int4Weight
from trifocal.layers.linear import Linear, LinearMethod, in_stretches, register
from trifocal.layers.slots import Slot

if TYPE_CHECKING:
    from trifocal.layers.linear import Linear

GROUPS = (128, 64, 32)


class Int4Linear(LinearMethod):
    """Parameters `weight`, `scale` and `zero` are the tensors of an `Int4Weight`."""

    def __init__(self, group: int) -> None:
        self.group = group

    def create(self, layer: Linear, in_features: int, out_features: int, bias: bool) -> None:
        empty = Int4Weight.empty(out_features, in_features, self.group)
        register(layer, "weight", empty.words)
        register(layer, "scale", empty.scale)
        register(layer, "zero", empty.zero)
        register(layer, "bias", torch.empty(out_features) if bias else None)

    def slots(self, layer: Linear, start: int, size: int) -> dict[str, Slot]:
        """The plain `weight` is rounded as it comes in."""
        slots: dict[str, Slot] = {"weight": _Rounding(layer, start, size, self.group)}
        if layer.bias is not None:
            slots["bias"] = layer.bias[start : start + size]
        return slots

    def apply(self, layer: Linear, x: Tensor) -> Tensor:
        """Activations become int8, group by group."""
        return layer.kernels.linear_int4_int8(x, weight_of(layer), layer.bias)

    def look_up(self, layer: Linear, ids: Tensor) -> Tensor:
        """Tables of embeddings are kept in int8 at least."""
        raise NotImplementedError


def weight_of(layer: Linear) -> Int4Weight:
    """The layer's parameters as one weight."""
    return Int4Weight(layer.weight, layer.scale, layer.zero, layer.out_features)


class _Rounding:
    """Takes float rows [size, in] in and keeps int4."""

    def __init__(self, layer: Linear, start: int, size: int, group: int) -> None:
        self._weight, self._start, self._group = weight_of(layer), start, group
        self.shape = torch.Size((size, layer.in_features))

    def copy_(self, values: Tensor) -> None:
        """Round to the nearest of 16 steps between the least and the greatest of each group (0 among them)."""
        for start, part in in_stretches(values):
            q, scale, zero = round_to_int4(part, self._group)
            self._weight.store(self._start + start, q)
            self._weight.store_scale(self._start + start, scale)
            self._weight.store_zero(self._start + start, zero)


def round_to_int4(weight: Tensor, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """weight [out, in] -> q uint8 [out, in], scale float16 and zero uint8 [out, in / group], as AWQ rounds."""
    grouped = weight.float().reshape(len(weight), -1, group)
    least, most = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)
    scale = ((most - least) / 15).clamp(min=1e-5).half()
    wide = scale.float()
    zero = (-least / wide).round_().clamp_(0, 15)
    q = (grouped / wide[..., None]).add_(zero[..., None]).round_().clamp_(0, 15)
    return q.to(torch.uint8).view(weight.shape), scale, zero.to(torch.uint8)
