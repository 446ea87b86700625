"""Giving memory back: what was freed goes to the system, not only to this process's own allocator. glibc's ways."""

from __future__ import annotations

import ctypes

_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8  # malloc.h
_ARENAS = 2
_LARGE_BYTES = 1 << 20


def few_heaps() -> None:
    """Let the threads of this process share two heaps; without, each may have its own to lie about half empty."""
    _glibc("mallopt", _M_ARENA_MAX, _ARENAS)


def no_large_leftovers() -> None:
    """Have what is larger than a megabyte go back the moment it is freed.

    Not for a process that computes: it would wait for fresh pages all the time.
    """
    _glibc("mallopt", _M_MMAP_THRESHOLD, _LARGE_BYTES)


def give_back() -> None:
    """Give back what is free now. Takes milliseconds."""
    _glibc("malloc_trim", 0)


def _glibc(name: str, *arguments: int) -> None:
    """Call a function that only glibc has; elsewhere nothing."""
    function = getattr(ctypes.CDLL(None), name, None)
    if function is not None:
        function(*arguments)
