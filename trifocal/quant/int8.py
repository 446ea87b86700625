"""Weights in int8, symmetric, one scale for each output; made from a plain checkpoint while it is loaded."""

from __future__ import annotations

import torch
from torch import Tensor

from trifocal.layers.linear import Linear, LinearMethod, in_stretches, register
from trifocal.layers.slots import Slot


class Int8Linear(LinearMethod):
    """weight int8 [out, in], scale float32 [out]; activations become int8 row by row as they come."""

    def create(self, layer: Linear, in_features: int, out_features: int, bias: bool) -> None:
        register(layer, "weight", self.empty_weight(in_features, out_features))
        register(layer, "scale", torch.empty(out_features, dtype=torch.float32))
        register(layer, "bias", torch.empty(out_features) if bias else None)

    def slots(self, layer: Linear, start: int, size: int) -> dict[str, Slot]:
        """The plain `weight` is rounded as it comes in."""
        slots: dict[str, Slot] = {"weight": _Rounding(self, layer, start, size)}
        if layer.bias is not None:
            slots["bias"] = layer.bias[start : start + size]
        return slots

    def empty_weight(self, in_features: int, out_features: int) -> Tensor:
        """Memory for the whole numbers."""
        return torch.empty(out_features, in_features, dtype=torch.int8)

    def store(self, layer: Linear, start: int, rows: Tensor) -> None:
        """Keep whole numbers [n, in], of whatever type, as the weights of outputs `start ..`."""
        layer.weight[start : start + len(rows)] = rows

    def rows(self, layer: Linear, ids: Tensor) -> Tensor:
        """Weights of outputs `ids`: int8 [n, in]."""
        return layer.weight[ids]

    def apply(self, layer: Linear, x: Tensor) -> Tensor:
        return layer.kernels.linear_int8(x, layer.weight, layer.scale, layer.bias)

    def look_up(self, layer: Linear, ids: Tensor) -> Tensor:
        """Rows times their scales."""
        return (self.rows(layer, ids).float() * layer.scale[ids, None]).to(layer.compute_dtype)


class _Rounding:
    """Takes float rows [size, in] in and keeps int8."""

    def __init__(self, method: Int8Linear, layer: Linear, start: int, size: int) -> None:
        self._method, self._layer, self._start = method, layer, start
        self.shape = torch.Size((size, layer.in_features))

    def copy_(self, values: Tensor) -> None:
        """Round to the nearest of 255 steps of each row."""
        for start, part in in_stretches(values):
            first = self._start + start
            wide = part.to(torch.float32, copy=True)  # rounded in place below: it must not be the caller's
            scale = torch.maximum(wide.amax(1), -wide.amin(1)) / 127
            self._layer.scale[first : first + len(part)] = scale
            self._method.store(self._layer, first, wide.div_(scale.clamp(min=1e-30)[:, None]).round_())


INT8 = Int8Linear()
