"""Linear layers: a weight behind a `LinearMethod`, and several checkpoint tensors stored as one."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from trifocal.layers.base import Layer
from trifocal.quant.base import PLAIN, LinearMethod


class Linear(Layer):
    """y = x W^T + b, in whatever format `method` keeps W."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool, method: LinearMethod = PLAIN) -> None:
        super().__init__()
        self.method = method
        method.create(self, in_features, out_features, bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features]."""
        return self.method.apply(self, x)


class MergedLinear(Linear):
    """Linear layers over the same input as one product, e.g. q, k and v.

    `parts` maps the name that each has in a checkpoint (a sibling of this layer) to its number of output features.
    """

    def __init__(
        self, in_features: int, parts: Mapping[str, int], *, bias: bool, method: LinearMethod = PLAIN
    ) -> None:  # fmt: skip
        super().__init__(in_features, sum(parts.values()), bias=bias, method=method)
        self.parts = dict(parts)

    def weight_slots(self) -> dict[str, Tensor]:
        """`"<part>.<parameter>"` -> the view that this checkpoint tensor fills."""
        slots = {}
        for name, parameter in self.named_parameters(recurse=False):
            start = 0
            for part, size in self.parts.items():
                slots[f"{part}.{name}"] = self.method.rows(name, parameter, start, size)
                start += size
        return slots
