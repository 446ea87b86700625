"""AWQ as AutoAWQ writes it (version GEMM), repacked while it is loaded.

For a layer with K inputs and N outputs a checkpoint has `qweight` int32 [K, N / 8], `qzeros` int32 [K / group, N / 8]
and `scales` float16 [K / group, N]. The weight is (q - zero) * scale. Eight outputs share an integer, in the order
below.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trifocal.kernels.base import pack_int4
from trifocal.quant.base import Slot
from trifocal.quant.int4 import Int4Linear, parts

if TYPE_CHECKING:
    from trifocal.layers.linear import Linear

_SHIFTS = (0, 16, 4, 20, 8, 24, 12, 28)  # of output 0 .. 7 within its integer


class AwqLinear(Int4Linear):
    """Stored and applied as `Int4Linear`; only its checkpoint tensors are AWQ's."""

    def slots(self, layer: Linear, start: int, size: int) -> dict[str, Slot]:
        """`qweight`, `qzeros`, `scales` and `bias`."""
        weight, scale, zero = parts(layer, start, size)
        inputs, groups = 2 * weight.shape[1], len(scale)
        slots: dict[str, Slot] = {
            "qweight": _Repacking(weight, torch.Size((inputs, size // 8))),
            "qzeros": _Unpacking(zero, torch.Size((groups, size // 8))),
            "scales": scale,
        }
        if layer.bias is not None:
            slots["bias"] = layer.bias[start : start + size]
        return slots


def unpack_awq(packed: Tensor) -> Tensor:
    """int32 [rows, N / 8] -> uint8 [rows, N]."""
    shifts = torch.tensor(_SHIFTS, dtype=torch.int32, device=packed.device)
    return ((packed[..., None] >> shifts) & 15).to(torch.uint8).flatten(1)


class _Unpacking:
    """Takes packed integers in and keeps one byte each."""

    def __init__(self, target: Tensor, shape: torch.Size) -> None:
        self._target = target
        self.shape = shape

    def copy_(self, values: Tensor) -> None:
        """See `unpack_awq`."""
        self._target.copy_(unpack_awq(values))


class _Repacking(_Unpacking):
    """Takes a `qweight` in and keeps our order of nibbles, outputs as rows."""

    def copy_(self, values: Tensor) -> None:
        """See `pack_int4`."""
        self._target.copy_(pack_int4(unpack_awq(values).t().contiguous()))
