"""Kernels for every instruction set that this machine has; tests without a compiler are skipped, and say so."""

from __future__ import annotations

import pytest

from trifocal.kernels.cpu.build import INSTRUCTION_SETS, BuildError, build, choose, cpu_features
from trifocal.kernels.cpu.library import Library

NAMES = [each.name for each in INSTRUCTION_SETS]


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
