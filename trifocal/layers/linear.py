"""Linear layers: a weight behind a `LinearMethod`, and several checkpoint tensors stored as one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trifocal.layers.base import Layer


class Slot(Protocol):
    """Where a checkpoint tensor goes: memory of its shape, or something that stores it in another format."""

    @property
    def shape(self) -> torch.Size:
        """What the checkpoint tensor must have."""

    def copy_(self, values: Tensor) -> object:
        """Take the tensor in."""


class LinearMethod(ABC):
    """A weight format of `layers.linear.Linear`. Its only state is the format: parameters belong to the layer."""

    @abstractmethod
    def create(self, layer: Linear, in_features: int, out_features: int, bias: bool) -> None:
        """Register the layer's parameters, uninitialised, in torch's default dtype and on its default device."""

    @abstractmethod
    def slots(self, layer: Linear, start: int, size: int) -> dict[str, Slot]:
        """Name of a checkpoint tensor -> where output features `start .. start + size` take it in."""

    @abstractmethod
    def apply(self, layer: Linear, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features]."""

    def apply_gated(self, layer: Linear, x: Tensor) -> Tensor:
        """silu(gate) * value of outputs that are gates first, then as many values -> [..., out_features / 2]."""
        return layer.kernels.silu_and_mul(self.apply(layer, x))

    @abstractmethod
    def look_up(self, layer: Linear, ids: Tensor) -> Tensor:
        """Rows of the weight, where it is a table of embeddings: int64 [n] -> [n, in_features]."""


class PlainLinear(LinearMethod):
    """The unquantized weight [out_features, in_features] and an optional bias [out_features]."""

    def create(self, layer: Linear, in_features: int, out_features: int, bias: bool) -> None:
        """Register `weight` and `bias`."""
        register(layer, "weight", torch.empty(out_features, in_features))
        register(layer, "bias", torch.empty(out_features) if bias else None)

    def slots(self, layer: Linear, start: int, size: int) -> dict[str, Slot]:
        """Output features are rows of both parameters."""
        return {name: tensor[start : start + size] for name, tensor in layer.named_parameters(recurse=False)}

    def apply(self, layer: Linear, x: Tensor) -> Tensor:
        """One matrix product."""
        return layer.kernels.linear(x, layer.weight, layer.bias)

    def look_up(self, layer: Linear, ids: Tensor) -> Tensor:
        """As they are."""
        return F.embedding(ids, layer.weight)


def in_stretches(values: Tensor, num_elements: int = 1 << 21) -> Iterator[tuple[int, Tensor]]:
    """(first row, rows) of a matrix, about so many elements at a time: what is made of them on the way stays small."""
    step = max(1, num_elements // max(1, values[0].numel()))
    for start in range(0, len(values), step):
        yield start, values[start : start + step]


def register(layer: nn.Module, name: str, tensor: Tensor | None) -> None:
    """Make a tensor a parameter that is never trained."""
    layer.register_parameter(name, None if tensor is None else nn.Parameter(tensor, requires_grad=False))


PLAIN = PlainLinear()


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
