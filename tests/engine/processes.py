"""What tests ask about processes and the nameless memory between them (Linux)."""

from __future__ import annotations

import os
import time
from pathlib import Path


def is_running(pid: int | None) -> bool:
    """Whether there is such a process, ended ones that nobody has waited for excepted."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def open_memory(pid: int | None = None) -> int:
    """Bytes of nameless memory, and open ends of it, that a process (default: this one) holds on to."""
    total = 0
    for link in Path(f"/proc/{pid or os.getpid()}/fd").iterdir():
        try:
            if os.readlink(link).startswith("/memfd:trifocal"):
                total += 1 + link.stat().st_size
        except OSError:  # closed meanwhile
            continue
    return total


def is_gone_soon(pid: int, timeout_s: float = 10.0) -> bool:
    """Whether the process ends by itself within the time."""
    deadline = time.monotonic() + timeout_s
    while is_running(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
