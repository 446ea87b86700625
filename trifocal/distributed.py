"""Which share of a model a worker computes, and how it adds up with the workers that compute the others."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Parallel:
    """A worker's place: `tp_size` ranks share every layer, `pp_size` stages share the layers among them."""

    tp_rank: int = 0
    tp_size: int = 1
    pp_rank: int = 0
    pp_size: int = 1


class Group(Protocol):
    """Ranks that compute shares of the same layers. Every rank makes the same calls in the same order."""

    size: int
    rank: int

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of all ranks' `x`, the same bits on each rank. Shape and dtype are those of `x`."""
        ...

    def all_gather(self, x: Tensor, dim: int) -> Tensor:
        """All ranks' `x`, joined along `dim` in order of rank."""
        ...


class _Solo:
    """A group of one: its sum and its whole are what the only rank has."""

    size = 1
    rank = 0

    def all_reduce(self, x: Tensor) -> Tensor:
        return x

    def all_gather(self, x: Tensor, dim: int) -> Tensor:
        return x


SOLO: Group = _Solo()
