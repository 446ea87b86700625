"""The CPU's linear methods: weights as they are, or in int8, laid out for its kernels while they are loaded."""

from __future__ import annotations

import torch
from torch import Tensor

from trifocal.kernels.blocks import empty_blocks, int8_of_words, store_rows, take_rows, words_of_int8
from trifocal.kernels.cpu.ops import CpuKernels
from trifocal.layers.linear import PLAIN, Linear, LinearMethod, register
from trifocal.layers.slots import Slot
from trifocal.quant.int8 import Int8Linear
from trifocal.quant.methods import LinearMethods


class CpuLinearMethods(LinearMethods):
    """Blocks for int8, and for plain weights of models in bfloat16. int4 is in blocks on any device."""

    name = "blocks"

    def __init__(self, kernels: CpuKernels) -> None:
        self._plain, self._int8 = BlocksLinear(kernels), Int8BlocksLinear(kernels)

    def plain(self, layer: Linear) -> LinearMethod:
        """Two bfloat16 share a word, so an odd number of inputs stays as it is."""
        return self._plain if layer.compute_dtype == torch.bfloat16 and layer.in_features % 2 == 0 else PLAIN

    def int8(self, layer: Linear) -> LinearMethod:
        """Of any size."""
        return self._int8


class BlocksLinear(LinearMethod):
    """weight int32 [out / 16, in / 2, 16], two bfloat16 in a word, and an optional bias [out]."""

    def __init__(self, kernels: CpuKernels) -> None:
        self._kernels = kernels

    def create(self, layer: Linear, in_features: int, out_features: int, bias: bool) -> None:
        register(layer, "weight", empty_blocks(out_features, in_features // 2))
        register(layer, "bias", torch.empty(out_features) if bias else None)

    def slots(self, layer: Linear, start: int, size: int) -> dict[str, Slot]:
        """The plain `weight` is laid out as it comes in."""
        slots: dict[str, Slot] = {"weight": _LayingOut(layer, start, size)}
        if layer.bias is not None:
            slots["bias"] = layer.bias[start : start + size]
        return slots

    def apply(self, layer: Linear, x: Tensor) -> Tensor:
        return self._kernels.linear_blocks(x, layer.weight, layer.out_features, layer.bias)

    def apply_gated(self, layer: Linear, x: Tensor) -> Tensor:
        """One kernel, where there is one."""
        return self._kernels.gated_linear_blocks(x, layer.weight, layer.out_features, layer.bias)

    def look_up(self, layer: Linear, ids: Tensor) -> Tensor:
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

    def __init__(self, kernels: CpuKernels) -> None:
        self._kernels = kernels

    def empty_weight(self, in_features: int, out_features: int) -> Tensor:
        return empty_blocks(out_features, -(-in_features // 4))

    def store(self, layer: Linear, start: int, rows: Tensor) -> None:
        store_rows(layer.weight, start, words_of_int8(rows.to(torch.int8)))

    def rows(self, layer: Linear, ids: Tensor) -> Tensor:
        return int8_of_words(take_rows(layer.weight, ids), layer.in_features)

    def apply(self, layer: Linear, x: Tensor) -> Tensor:
        return self._kernels.linear_int8_blocks(x, layer.weight, layer.scale, layer.bias)

    def apply_gated(self, layer: Linear, x: Tensor) -> Tensor:
        """One kernel, where there is one."""
        return self._kernels.gated_linear_int8_blocks(x, layer.weight, layer.scale, layer.bias)
