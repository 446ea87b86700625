"""What tests of kernels share: the kernels of each instruction set of this machine, and how much to try with them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.kernels import isa
from tests.kernels.isa import Grid
from trifocal.kernels.cpu.ops import CpuKernels


@pytest.fixture(scope="module", params=isa.GRIDS)
def grid(request: pytest.FixtureRequest) -> Iterator[Grid]:
    """The whole grid is on three threads, else there is one; tests of threads set them themselves."""
    chosen: Grid = request.param
    isa.library(chosen.name)  # or skip
    torch.set_num_threads(3 if chosen.extent == "whole" else 1)
    yield chosen
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def kernels(grid: Grid) -> CpuKernels:
    return CpuKernels(isa.library(grid.name))


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)
