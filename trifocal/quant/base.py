"""How a linear layer stores and applies its weight; one method per storage format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from trifocal.layers.linear import Linear


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
