"""Which share of a model a worker computes, and how it adds up with the workers that compute the others."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from trifocal.errors import ConfigError


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

    def gather(self, x: Tensor, dim: int) -> Tensor:
        """As `all_gather` on rank 0. On other ranks `x` itself: what is made of it there, nobody reads."""
        ...


class _Solo:
    """A group of one: its sum and its whole are what the only rank has."""

    size = 1
    rank = 0

    def all_reduce(self, x: Tensor) -> Tensor:
        return x

    def all_gather(self, x: Tensor, dim: int) -> Tensor:
        return x

    def gather(self, x: Tensor, dim: int) -> Tensor:
        return x


SOLO: Group = _Solo()


def share(count: int, group: Group, what: str, *, may_repeat: bool = False) -> tuple[int, int]:
    """(first, number) of those of `count` things, e.g. heads, that this rank has: as many as any other.

    may_repeat: fewer things than ranks are repeated, neighbours have the same one. Raises `ConfigError`, naming `what`,
    where ranks cannot have equally many.
    """
    if count % group.size == 0:
        number = count // group.size
        return group.rank * number, number
    if may_repeat and group.size % count == 0:
        return group.rank * count // group.size, 1
    raise ConfigError(
        f"--tensor-parallel-size {group.size}: {count} {what} cannot be shared evenly; choose a size that divides them"
    )
