"""The crash trace: where a process was when a signal like SIGSEGV ended it, as `faulthandler` tells.

It writes into a nameless file that the server process holds open as well: its own words, which have file paths and
addresses in them, are nothing for a log.
"""

from __future__ import annotations

import os
import re

from trifocal.engine.step_note import nameless_file

_MAX_BYTES = 1 << 20
_MAX_PLACES = 8  # the innermost ones
_PLACE = re.compile(r'File ".*?([^/\\"]+)", line (\d+)')


class CrashTrace:
    """One engine's trace; `fileno` is what its process inherits."""

    def __init__(self, fileno: int) -> None:
        self.fileno = fileno

    @classmethod
    def create(cls) -> CrashTrace:
        return cls(nameless_file("trifocal-trace"))

    def read(self) -> str:
        """All of it; nothing if there was no crash."""
        return os.pread(self.fileno, _MAX_BYTES, 0).decode(errors="replace")

    def close(self) -> None:
        os.close(self.fileno)


def way(trace: str) -> str:
    """The way of the thread that crashed, as `log.outline` tells an exception's: `sampler.py:47 < worker.py:68`."""
    own = trace.partition("Current thread")[2].partition("\n\n")[0]
    return " < ".join(f"{name}:{line}" for name, line in _PLACE.findall(own)[:_MAX_PLACES])
