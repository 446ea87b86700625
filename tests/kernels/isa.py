"""Kernels for every instruction set that this machine has, and how much of each grid of cases is tried with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar

import pytest

from trifocal.kernels.cpu.build import INSTRUCTION_SETS, BuildError, build, choose, cpu_features
from trifocal.kernels.cpu.library import Library

NAMES = [each.name for each in INSTRUCTION_SETS]
T = TypeVar("T")


def usable() -> list[str]:
    """The instruction sets of this machine, the newest first."""
    features = cpu_features()
    return [each.name for each in INSTRUCTION_SETS if each.features <= features]


NEWEST = (usable() or NAMES)[0]


@dataclass(frozen=True)
class Grid:
    """How much is tried with an instruction set.

    `usual`: the machine's newest one. `edges`: the others, at the edges of their vectors, by which they differ.
    `whole`: everything, on three threads; slow.
    """

    name: str
    extent: Literal["usual", "edges", "whole"]

    def of(self, *, whole: T, edges: T, usual: T | None = None) -> T:
        """The cases of this extent; as a rule the usual ones are all."""
        return edges if self.extent == "edges" else whole if self.extent == "whole" or usual is None else usual


GRIDS = [
    pytest.param(Grid(name, "usual" if name == NEWEST else "edges"), id=f"{name}") for name in NAMES
] + [pytest.param(Grid(name, "whole"), id=f"{name}-whole", marks=pytest.mark.slow) for name in NAMES]  # fmt: skip
# For tests of Python code, which is the same for all.
EACH_BUT_NEWEST_SLOW = [
    pytest.param(name, marks=[] if name == NEWEST else pytest.mark.slow) for name in NAMES
]  # fmt: skip


def library(name: str) -> Library:
    """The library of an instruction set; skips the test where it cannot be had."""
    try:
        chosen = choose(name, cpu_features())
    except BuildError as error:
        pytest.skip(str(error))
    try:
        return Library(chosen, build(chosen))
    except BuildError as error:
        if "no C++ compiler" in str(error):
            pytest.skip(str(error))
        raise
