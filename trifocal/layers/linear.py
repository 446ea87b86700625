"""Linear layers: a weight behind a `LinearMethod`, several checkpoint tensors stored as one, and shares of ranks.

A layer has a role among the ranks of its group. `Linear` is whole on each of them. `MergedLinear` has a share of its
outputs, `RowLinear` one of its inputs, so that a product of the first goes into the second as it is; tokens are shared
by `layers.embedding`. In a group of one all are whole.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trifocal.distributed import SOLO, Group, share
from trifocal.layers.base import Layer
from trifocal.layers.slots import Axes, Axis, ShareSlot, Slot, UnusedSlot


class LinearMethod(ABC):
    """A weight format of `Linear`. Its only state is the format: parameters belong to the layer.

    axes: where features lie in each of the format's checkpoint tensors, by name, so that ranks can share them.
    """

    axes: Mapping[str, Axes] = {"weight": Axes(Axis(0), Axis(1)), "bias": Axes(Axis(0), None)}

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
        register(layer, "weight", torch.empty(out_features, in_features))
        register(layer, "bias", torch.empty(out_features) if bias else None)

    def slots(self, layer: Linear, start: int, size: int) -> dict[str, Slot]:
        return {name: tensor[start : start + size] for name, tensor in layer.named_parameters(recurse=False)}

    def apply(self, layer: Linear, x: Tensor) -> Tensor:
        return layer.kernels.linear(x, layer.weight, layer.bias)

    def look_up(self, layer: Linear, ids: Tensor) -> Tensor:
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
    """y = x W^T + b, in whatever format `method` keeps W; whole on each rank.

    `in_features` and `out_features` are this rank's; `whole_in_features` are those of all ranks.
    """

    method: LinearMethod
    group: Group = SOLO
    weight: Tensor
    bias: Tensor | None
    scale: Tensor  # this and the next one: where the format has them
    zero: Tensor

    def __init__(self, in_features: int, out_features: int, *, bias: bool, method: LinearMethod = PLAIN) -> None:
        super().__init__()
        self.in_features, self.out_features, self.has_bias = in_features, out_features, bias
        self.whole_in_features = in_features
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


class RowLinear(Linear):
    """Each rank has a stretch of the inputs, and the ranks' products add up. Rank 0 adds the bias."""

    def __init__(
        self, in_features: int, out_features: int, *, bias: bool, group: Group = SOLO, method: LinearMethod = PLAIN
    ) -> None:  # fmt: skip
        self.first_input, number = share(in_features, group, "inputs of a linear layer")
        self.leaves_bias = bias and group.rank > 0
        super().__init__(number, out_features, bias=bias and group.rank == 0, method=method)
        self.whole_in_features, self.group = in_features, group

    def forward(self, x: Tensor) -> Tensor:
        """x [..., this rank's inputs] -> the sum over ranks [..., out_features]."""
        return self.group.all_reduce(self.method.apply(self, x))

    def weight_slots(self) -> dict[str, Slot]:
        """They take in whole tensors."""
        slots = super().weight_slots()
        if self.group.size == 1:
            return slots
        for name, slot in slots.items():
            axis = self.method.axes[name].inputs
            if axis is not None:
                slots[name] = ShareSlot(slot, axis, self.first_input, self.whole_in_features)
        return slots | ({"bias": UnusedSlot(self.out_features)} if self.leaves_bias else {})


@dataclass(frozen=True)
class Heads:
    """Outputs that stay together: `number` heads of `size` features. Fewer heads than ranks are repeated."""

    number: int
    size: int


class MergedLinear(Linear):
    """Linear layers over the same input as one product, e.g. q, k and v; each rank has a share of each.

    `parts` maps the name that each has in a checkpoint (a sibling of this layer) to its number of output features, or
    to its heads. The attribute has this rank's numbers of features.
    """

    def __init__(
        self, in_features: int, parts: Mapping[str, int | Heads], *, bias: bool, group: Group = SOLO,
        method: LinearMethod = PLAIN,
    ) -> None:  # fmt: skip
        self.parts: dict[str, int] = {}
        self._places: dict[str, tuple[int, int]] = {}  # (first output, outputs) of each part among those of all ranks
        for name, part in parts.items():
            if isinstance(part, Heads):
                heads, (first, number) = part, share(part.number, group, f"heads of {name}", may_repeat=True)
            else:
                heads, (first, number) = Heads(part, 1), share(part, group, f"outputs of {name}")
            self.parts[name] = number * heads.size
            self._places[name] = (first * heads.size, heads.number * heads.size)
        super().__init__(in_features, sum(self.parts.values()), bias=bias, method=method)
        self.group = group

    def weight_slots(self) -> dict[str, Slot]:
        """`"<part>.<name>"` of a checkpoint tensor beside this layer -> where it goes; they take in whole tensors."""
        slots: dict[str, Slot] = {}
        start = 0
        for part, size in self.parts.items():
            own = self.method.slots(self, start, size)
            slots |= {f"{part}.{name}": outputs_of(self, name, slot, *self._places[part]) for name, slot in own.items()}
            start += size
        return slots


def outputs_of(layer: Linear, name: str, slot: Slot, first: int, whole: int) -> Slot:
    """`slot` for a layer's checkpoint tensor `name`, of `whole` outputs: this rank's begin with `first`."""
    axis = layer.method.axes[name].outputs
    return slot if axis is None or layer.group.size == 1 else ShareSlot(slot, axis, first, whole)


class GatedLinear(MergedLinear):
    """silu(gate) * value of two linear layers over the same input; `parts` names the gate first."""

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features / 2]."""
        return self.method.apply_gated(self, x)
