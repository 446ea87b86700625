"""What tests of kernels share: the kernels of each instruction set of this machine, and numbers of threads."""

from __future__ import annotations

import pytest
import torch

from tests.kernels import isa
from trifocal.kernels.cpu.ops import CpuKernels


@pytest.fixture(scope="module", params=isa.NAMES)
def kernels(request: pytest.FixtureRequest) -> CpuKernels:
    return CpuKernels(isa.library(request.param))


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> None:
    torch.set_num_threads(request.param)
    request.addfinalizer(lambda: torch.set_num_threads(1))
