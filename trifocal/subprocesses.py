"""What processes that we start have in common: they take no code from where they are started, and do not outlive us."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def python_module(name: str, *words: str) -> list[str]:
    """The command that runs a module of this package as `python -m` does, to be started with `python_path`.

    With `-P`: the current folder may be a checkpoint's, and nothing is to be imported from there.
    """
    return [sys.executable, "-P", "-m", name, *words]


def python_path() -> dict[str, str]:
    """The environment variable by which such a process finds this package, installed or not."""
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths)}


def end_with_parent(number: int) -> Callable[[], None]:
    """What a child calls to have the kernel send it signal `number` when its parent ends, however it ends.

    The look-up is done here and not in the call, which may so be made between fork and exec. Linux; elsewhere the
    call does nothing.
    """
    if sys.platform != "linux":
        return lambda: None
    prctl = ctypes.CDLL(None).prctl

    def call() -> None:
        prctl(_PR_SET_PDEATHSIG, number)

    return call
