"""How a linear layer stores and applies its weight; one method per storage format."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from trifocal.layers.base import Layer


class LinearMethod(ABC):
    """A weight format of `layers.linear.Linear`. A method holds no state: parameters belong to the layer."""

    @abstractmethod
    def create(self, layer: Layer, in_features: int, out_features: int, bias: bool) -> None:
        """Register the layer's parameters, uninitialised, in torch's default dtype and on its default device."""

    @abstractmethod
    def rows(self, name: str, parameter: Tensor, start: int, size: int) -> Tensor:
        """The view of parameter `name` that holds output features `start .. start + size`."""

    @abstractmethod
    def apply(self, layer: Layer, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features]."""


class PlainLinear(LinearMethod):
    """The unquantized weight [out_features, in_features] and an optional bias [out_features]."""

    def create(self, layer: Layer, in_features: int, out_features: int, bias: bool) -> None:
        """Register `weight` and `bias`."""
        weight = nn.Parameter(torch.empty(out_features, in_features), requires_grad=False)
        layer.register_parameter("weight", weight)
        layer.register_parameter("bias", nn.Parameter(torch.empty(out_features), requires_grad=False) if bias else None)

    def rows(self, name: str, parameter: Tensor, start: int, size: int) -> Tensor:
        """Output features are rows of both parameters."""
        return parameter[start : start + size]

    def apply(self, layer: Layer, x: Tensor) -> Tensor:
        """One matrix product."""
        return layer.kernels.linear(x, layer.weight, layer.bias)  # type: ignore[arg-type]  # Modules are untyped


PLAIN = PlainLinear()
