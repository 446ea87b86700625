"""Weights as they are, or in int8, laid out for a device's kernels while they are loaded."""

from __future__ import annotations

import torch
from torch import Tensor

from trifocal.kernels.blocks import empty_blocks, int8_of_words, store_rows, take_rows, words_of_int8
from trifocal.layers.linear import Linear, LinearMethod, Slot, register
from trifocal.quant.int8 import Int8Linear


class BlocksLinear(LinearMethod):
    """weight int32 [out / 16, in / 2, 16], two bfloat16 in a word, and an optional bias [out]."""

    def create(self, layer: Linear, in_features: int, out_features: int, bias: bool) -> None:
        """Register `weight` and `bias`."""
        register(layer, "weight", empty_blocks(out_features, in_features // 2))
        register(layer, "bias", torch.empty(out_features) if bias else None)

    def slots(self, layer: Linear, start: int, size: int) -> dict[str, Slot]:
        """The plain `weight` is laid out as it comes in."""
        slots: dict[str, Slot] = {"weight": _LayingOut(layer, start, size)}
        if layer.bias is not None:
            slots["bias"] = layer.bias[start : start + size]
        return slots

    def apply(self, layer: Linear, x: Tensor) -> Tensor:
        """One matrix product."""
        return layer.kernels.linear_blocks(x, layer.weight, layer.out_features, layer.bias)

    def apply_gated(self, layer: Linear, x: Tensor) -> Tensor:
        """One kernel, where there is one."""
        return layer.kernels.gated_linear_blocks(x, layer.weight, layer.out_features, layer.bias)

    def look_up(self, layer: Linear, ids: Tensor) -> Tensor:
        """As they are."""
        return take_rows(layer.weight, ids).view(torch.bfloat16)


class _LayingOut:
    """Takes rows [size, in] in and keeps words."""

    def __init__(self, layer: Linear, start: int, size: int) -> None:
        self._weight, self._start = layer.weight, start
        self.shape = torch.Size((size, layer.in_features))

    def copy_(self, values: Tensor) -> None:
        """Round to bfloat16, if it is not."""
        store_rows(self._weight, self._start, values.to(torch.bfloat16).contiguous().view(torch.int32))


class Int8BlocksLinear(Int8Linear):
    """weight int32 [out / 16, in / 4 rounded up, 16], four int8 in a word, scale float32 [out]."""

    def empty_weight(self, in_features: int, out_features: int) -> Tensor:
        """Words."""
        return empty_blocks(out_features, -(-in_features // 4))

    def store(self, layer: Linear, start: int, rows: Tensor) -> None:
        """As words."""
        store_rows(layer.weight, start, words_of_int8(rows.to(torch.int8)))

    def rows(self, layer: Linear, ids: Tensor) -> Tensor:
        """int8 [n, in]."""
        return int8_of_words(take_rows(layer.weight, ids), layer.in_features)

    def apply(self, layer: Linear, x: Tensor) -> Tensor:
        """Integer products."""
        return layer.kernels.linear_int8_blocks(x, layer.weight, layer.scale, layer.bias)

    def apply_gated(self, layer: Linear, x: Tensor) -> Tensor:
        """One kernel, where there is one."""
        return layer.kernels.gated_linear_int8_blocks(x, layer.weight, layer.scale, layer.bias)


BLOCKS = BlocksLinear()
INT8_BLOCKS = Int8BlocksLinear()
