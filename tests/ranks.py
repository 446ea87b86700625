"""Ranks of one group as threads of one process: what they exchange is real, and each waits for all."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, BrokenBarrierError
from typing import TypeVar

import torch
from torch import Tensor

from trifocal.distributed import Group

T = TypeVar("T")


class ThreadGroup:
    """One rank's view; see `Group`."""

    def __init__(self, rank: int, size: int, given: list[Tensor | None], barrier: Barrier) -> None:
        self.rank, self.size = rank, size
        self._given, self._barrier = given, barrier

    def _exchange(self, x: Tensor) -> list[Tensor]:
        self._given[self.rank] = x
        self._barrier.wait(60)
        parts = [each for each in self._given if each is not None]
        self._barrier.wait(60)  # nobody gives the next one before all have seen these
        assert len({(part.shape, part.dtype) for part in parts}) == 1, "ranks are not at the same place"
        return parts

    def all_reduce(self, x: Tensor) -> Tensor:
        first, *others = self._exchange(x)
        for other in others:
            first = first + other
        return first

    def all_gather(self, x: Tensor, dim: int) -> Tensor:
        return torch.cat(self._exchange(x), dim)

    def gather(self, x: Tensor, dim: int) -> Tensor:
        whole = self.all_gather(x, dim)
        return whole if self.rank == 0 else x


class Alone(ThreadGroup):
    """One rank by itself: what it gets from the others is what it gave."""

    def __init__(self, rank: int, size: int) -> None:
        super().__init__(rank, size, [], Barrier(1))

    def _exchange(self, x: Tensor) -> list[Tensor]:
        return [x]


def on_ranks(size: int, work: Callable[[Group], T]) -> list[T]:
    """What `work` returns on each rank. Raises what the first one raises that was not merely left waiting."""
    given: list[Tensor | None] = [None] * size
    barrier = Barrier(size)

    def run(rank: int) -> T:
        try:
            with torch.inference_mode():
                return work(ThreadGroup(rank, size, given, barrier))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(run, rank) for rank in range(size)]
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in sorted(errors, key=lambda each: isinstance(each, BrokenBarrierError)):
        raise error
    return [future.result() for future in futures]
