"""Linear layers: a weight behind a `LinearMethod`, and several checkpoint tensors stored as one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from trifocal.layers.base import Layer
from trifocal.quant.base import PLAIN, LinearMethod, Slot


class Linear(Layer):
    """y = x W^T + b, in whatever format `method` keeps W."""

    method: LinearMethod
    weight: Tensor
    bias: Tensor | None
    scale: Tensor  # this and the next one: where the format has them
    zero: Tensor

    def __init__(self, in_features: int, out_features: int, *, bias: bool, method: LinearMethod = PLAIN) -> None:
        super().__init__()
        self.in_features, self.out_features, self.has_bias = in_features, out_features, bias
        self.compute_dtype = torch.get_default_dtype()
        self.use(method)

    def use(self, method: LinearMethod) -> None:
        """Keep the weight in another format from now on; parameters are made anew and hold nothing yet."""
        self._parameters.clear()
        self.method = method
        method.create(self, self.in_features, self.out_features, self.has_bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features]."""
        return self.method.apply(self, x)

    def weight_slots(self) -> dict[str, Slot]:
        """Name of a checkpoint tensor within this layer -> where it goes."""
        return self.method.slots(self, 0, self.out_features)


class MergedLinear(Linear):
    """Linear layers over the same input as one product, e.g. q, k and v.

    `parts` maps the name that each has in a checkpoint (a sibling of this layer) to its number of output features.
    """

    def __init__(
        self, in_features: int, parts: Mapping[str, int], *, bias: bool, method: LinearMethod = PLAIN
    ) -> None:  # fmt: skip
        super().__init__(in_features, sum(parts.values()), bias=bias, method=method)
        self.parts = dict(parts)

    def weight_slots(self) -> dict[str, Slot]:
        """`"<part>.<name>"` of a checkpoint tensor beside this layer -> where it goes."""
        slots: dict[str, Slot] = {}
        start = 0
        for part, size in self.parts.items():
            slots |= {f"{part}.{name}": slot for name, slot in self.method.slots(self, start, size).items()}
            start += size
        return slots


class GatedLinear(MergedLinear):
    """silu(gate) * value of two linear layers over the same input; `parts` names the gate first."""

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features / 2]."""
        return self.method.apply_gated(self, x)
