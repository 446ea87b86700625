"""Memory for what is large and stays, weights and KV caches, and for the files that it is copied from."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Sequence
from contextlib import suppress
from math import prod

import torch
from torch import Tensor

_ALIGNMENT = 256
_HUGE_PAGE = 2 << 20


def empty_together(layouts: Sequence[tuple[Sequence[int], torch.dtype]], device: torch.device) -> list[Tensor]:
    """An uninitialised tensor for each (shape, dtype).

    On a CPU they share memory for which huge pages are asked: a step that reads all weights then looks up five hundred
    times fewer of them. Memory is taken when it is first written, a page at a time.
    """
    if device.type != "cpu":
        return [torch.empty(tuple(shape), dtype=dtype, device=device) for shape, dtype in layouts]
    sizes = [prod(shape) * dtype.itemsize for shape, dtype in layouts]
    offsets, total = [], 0
    for size in sizes:
        offsets.append(total)
        total += -(-size // _ALIGNMENT) * _ALIGNMENT
    memory = _memory(total)
    return [
        memory[offset : offset + size].view(dtype).view(tuple(shape))
        for (shape, dtype), offset, size in zip(layouts, offsets, sizes, strict=True)
    ]


def _memory(num_bytes: int) -> Tensor:
    """uint8 [num_bytes]; it goes back to the system with the last tensor that lies in it."""
    if not sys.platform.startswith("linux") or num_bytes < _HUGE_PAGE:
        return torch.empty(num_bytes, dtype=torch.uint8)
    mapped = mmap.mmap(-1, num_bytes + _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without them
        mapped.madvise(mmap.MADV_HUGEPAGE)
    memory = torch.frombuffer(mapped, dtype=torch.uint8)
    start = -memory.data_ptr() % _HUGE_PAGE
    return memory[start : start + num_bytes]


def forget(tensor: Tensor) -> None:
    """Let go of a mapped file's pages that were copied; without, a process would seem to hold every weight twice.

    The file itself stays in the system's cache.
    """
    if not sys.platform.startswith("linux"):
        return
    start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if start < end:  # advice: what it answers does not matter
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)
