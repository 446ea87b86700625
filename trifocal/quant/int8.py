"""Weights in int8, symmetric, one scale for each output; made from a plain checkpoint while it is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trifocal.quant.base import LinearMethod, Slot, in_stretches, register

if TYPE_CHECKING:
    from trifocal.layers.linear import Linear


class Int8Linear(LinearMethod):
    """weight int8 [out, in], scale float32 [out]; activations become int8 row by row as they come."""

    def create(self, layer: Linear, in_features: int, out_features: int, bias: bool) -> None:
        """Register `weight`, `scale` and `bias`."""
        register(layer, "weight", torch.empty(out_features, in_features, dtype=torch.int8))
        register(layer, "scale", torch.empty(out_features, dtype=torch.float32))
        register(layer, "bias", torch.empty(out_features) if bias else None)

    def slots(self, layer: Linear, start: int, size: int) -> dict[str, Slot]:
        """The plain `weight` is rounded as it comes in."""
        rows = slice(start, start + size)
        slots: dict[str, Slot] = {"weight": _Rounding(layer.weight[rows], layer.scale[rows])}
        if layer.bias is not None:
            slots["bias"] = layer.bias[rows]
        return slots

    def apply(self, layer: Linear, x: Tensor) -> Tensor:
        """Integer products."""
        return layer.kernels.linear_int8(x, layer.weight, layer.scale, layer.bias)

    def look_up(self, layer: Linear, ids: Tensor) -> Tensor:
        """Rows times their scales."""
        return (layer.weight[ids].float() * layer.scale[ids, None]).to(layer.compute_dtype)


class _Rounding:
    """Takes float rows [size, in] in and keeps int8."""

    def __init__(self, weight: Tensor, scale: Tensor) -> None:
        self._weight, self._scale = weight, scale
        self.shape = weight.shape

    def copy_(self, values: Tensor) -> None:
        """Round to the nearest of 255 steps of each row."""
        for start, part in in_stretches(values):
            rows = slice(start, start + len(part))
            wide = part.float()
            scale = torch.maximum(wide.amax(1), -wide.amin(1)) / 127
            self._scale[rows] = scale
            self._weight[rows] = wide.div_(scale.clamp(min=1e-30)[:, None]).round_()


INT8 = Int8Linear()
