"""Where checkpoint tensors go while a model is loaded: whole, or the share of one rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Slot(Protocol):
    """Where a checkpoint tensor goes: memory of its shape, or something that stores it in another format."""

    @property
    def shape(self) -> torch.Size:
        """What the checkpoint tensor must have."""

    def copy_(self, values: Tensor) -> object:
        """Take the tensor in."""


@dataclass(frozen=True)
class Axis:
    """A dimension of a checkpoint tensor along which features lie, so many to an element."""

    dim: int
    features: int = 1


@dataclass(frozen=True)
class Axes:
    """Where a linear layer's outputs and inputs lie in one of its checkpoint tensors; None: it has one for all."""

    outputs: Axis | None
    inputs: Axis | None


class ShareSlot:
    """Takes a whole tensor in and keeps features `start ..` of `whole`, as many as `slot` holds, which must divide.

    Where the tensor ends before the share does, zeros follow.
    """

    def __init__(self, slot: Slot, axis: Axis, start: int, whole: int) -> None:
        self._slot, self._dim = slot, axis.dim
        self._start, self._whole = start // axis.features, whole // axis.features
        shape = list(slot.shape)
        shape[axis.dim] = self._whole
        self.shape = torch.Size(shape)

    def copy_(self, values: Tensor) -> None:
        size = self._slot.shape[self._dim]
        start = min(self._start, self._whole)
        kept = min(size, self._whole - start)
        part = values.narrow(self._dim, start, kept)
        if kept < size:
            part = F.pad(part, (0, 0) * (values.ndim - 1 - self._dim) + (0, size - kept))
        self._slot.copy_(part)


class UnusedSlot:
    """Takes a tensor of `shape` in that another rank keeps."""

    def __init__(self, *shape: int) -> None:
        self.shape = torch.Size(shape)

    def copy_(self, values: Tensor) -> None:
        """Nothing is kept."""
