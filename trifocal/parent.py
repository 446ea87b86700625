"""A process that must not outlive the one that started it."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1


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
