"""Keeping memory small: what was freed goes to the system, and caches that libraries never empty are bounded."""

from __future__ import annotations

import ctypes
import os
import sys

_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8  # malloc.h
_ARENAS = 2
_LARGE_BYTES = 1 << 20
_PRIMITIVES = "64"  # the products of one layer at a dozen numbers of rows


def system_allocator() -> None:
    """Begin this program anew with `PYTHONMALLOC=malloc`, unless that variable is set; the process stays the same.

    A body of a hundred thousand small values leaves holes among Python's own small objects, which only glibc can give
    back. Costs a server 4 % of its own time. Does nothing but on Linux. Call it first, and in a program only: not
    where another one's `main` may be running.
    """
    if sys.platform == "linux" and sys.executable and "PYTHONMALLOC" not in os.environ:
        words = [sys.executable, *sys.orig_argv[1:]]
        os.execve(sys.executable, words, {**os.environ, "PYTHONMALLOC": "malloc"})


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


def few_primitives() -> None:
    """Have oneDNN and torch keep less of what they compile for each number of rows; call it before torch is imported.

    They keep 1024 of them each, which prompts of all lengths fill within minutes: hundreds of megabytes.
    A user's own settings stay. https://uxlfoundation.github.io/oneDNN/dev_guide_primitive_cache.html
    """
    for variable in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(variable, _PRIMITIVES)


def _glibc(name: str, *arguments: int) -> None:
    """Call a function that only glibc has; elsewhere nothing."""
    function = getattr(ctypes.CDLL(None), name, None)
    if function is not None:
        function(*arguments)
