"""AWQ as AutoAWQ writes it (version GEMM), repacked while it is loaded.

For a layer with K inputs and N outputs a checkpoint has `qweight` int32 [K, N / 8], `qzeros` int32 [K / group, N / 8]
and `scales` float16 [K / group, N]. The weight is (q - zero) * scale. Eight outputs share an integer, in the order
below.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trifocal.kernels.int4 import Int4Weight
from trifocal.layers.linear import in_stretches
from trifocal.layers.slots import Axes, Axis, Slot
from trifocal.quant.int4 import Int4Linear, weight_of

if TYPE_CHECKING:
    from trifocal.layers.linear import Linear

OUTPUTS_PER_COLUMN = {"qweight": 8, "qzeros": 8, "scales": 1}
_SHIFTS = (0, 16, 4, 20, 8, 24, 12, 28)  # of output 0 .. 7 within its integer


class AwqLinear(Int4Linear):
    """Stored as `Int4Linear`. Its checkpoint tensors are AWQ's, and activations stay as they are: AWQ is W4A16."""

    def __init__(self, group: int) -> None:
        super().__init__(group)
        per_column, rows = OUTPUTS_PER_COLUMN, {"qweight": 1, "qzeros": group, "scales": group}
        self.axes = {name: Axes(Axis(1, per_column[name]), Axis(0, inputs)) for name, inputs in rows.items()}
        self.axes |= {"bias": Axes(Axis(0), None)}

    def slots(self, layer: Linear, start: int, size: int) -> dict[str, Slot]:
        weight, packed = weight_of(layer), size // 8
        groups = layer.in_features // self.group
        slots: dict[str, Slot] = {
            "qweight": _Turned((layer.in_features, packed), lambda q: _store(weight, start, q)),
            "qzeros": _Turned((groups, packed), lambda zero: weight.store_zero(start, unpack_awq(zero).t())),
            "scales": _Turned((groups, size), lambda scale: weight.store_scale(start, scale.t())),
        }
        if layer.bias is not None:
            slots["bias"] = layer.bias[start : start + size]
        return slots

    def apply(self, layer: Linear, x: Tensor) -> Tensor:
        """In the type of the activations."""
        return layer.kernels.linear_int4(x, weight_of(layer), layer.bias)


def _store(weight: Int4Weight, start: int, packed: Tensor) -> None:
    for first, outputs in in_stretches(packed.t(), 1 << 18):
        weight.store(start + 8 * first, unpack_awq(outputs.t()).t())


class _Turned:
    """Takes a tensor in whose columns are outputs."""

    def __init__(self, shape: tuple[int, int], store: Callable[[Tensor], None]) -> None:
        self.shape = torch.Size(shape)
        self._store = store

    def copy_(self, values: Tensor) -> None:
        self._store(values)


def unpack_awq(packed: Tensor) -> Tensor:
    """int32 [rows, N / 8] -> uint8 [rows, N]."""
    shifts = torch.tensor(_SHIFTS, dtype=torch.int32, device=packed.device)
    return ((packed[..., None] >> shifts) & 15).to(torch.uint8).flatten(1)


def pack_awq(values: Tensor) -> Tensor:
    """Integers 0 .. 15 [rows, N], N a multiple of 8 -> int32 [rows, N / 8]."""
    eights = values.to(torch.int32).reshape(len(values), -1, 8)
    packed = torch.zeros_like(eights[..., 0])
    for index, shift in enumerate(_SHIFTS):
        packed |= eights[..., index] << shift
    return packed
