"""Where a worker gets the pixels of media items from."""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass, replace
from typing import Protocol
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from trifocal.errors import RequestError
from trifocal.types import MediaItem, SharedPixels


class PixelSource(Protocol):
    """Finds pixels for the workers of one process.

    A request's items are held before its first plan is made, so that the writer of the pixels may give them back as
    soon as it has aborted the request: a step that was planned before still finds them.
    """

    def hold(self, item: MediaItem) -> MediaItem:
        """The item with pixels that stay until it is dropped. Raises `RequestError` if they are gone already."""
        ...

    def array(self, item: MediaItem) -> NDArray[np.uint8]:
        """The pixels of an item that is held, read-only; called in the worker that encodes it."""
        ...

    @property
    def num_mapped(self) -> int:
        """How many items' shared memory is mapped in this process."""
        ...


@dataclass(frozen=True, slots=True)
class MappedPixels(SharedPixels):
    """Shared memory that this process has mapped, as long as somebody holds this."""

    memory: mmap.mmap


class LocalPixels:
    """See `PixelSource`: arrays of this process, and shared memory of this machine (`engine/media_store.py`)."""

    def __init__(self) -> None:
        self._mapped: WeakSet[mmap.mmap] = WeakSet()  # arrays and `MappedPixels` keep them

    def hold(self, item: MediaItem) -> MediaItem:
        """Map shared memory. It is gone for a request that was given up before anybody looked at it."""
        shared = item.pixels
        if not isinstance(shared, SharedPixels):
            return item
        try:
            with open(shared.path, "rb") as file:
                memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            if len(memory) < _num_bytes(shared):
                raise ValueError("somebody else's are in their place")
        except (OSError, ValueError):
            raise RequestError("the request's media are gone", param="messages", status=500) from None
        self._mapped.add(memory)
        return replace(item, pixels=MappedPixels(shared.path, shared.shape, shared.dtype, memory))

    def array(self, item: MediaItem) -> NDArray[np.uint8]:
        """A view of the mapped memory, which is read where it lies."""
        pixels = item.pixels
        if isinstance(pixels, MappedPixels):
            flat = np.frombuffer(pixels.memory, pixels.dtype, count=math.prod(pixels.shape))
            return flat.reshape(pixels.shape)
        assert not isinstance(pixels, SharedPixels), "hold() first"
        return pixels

    @property
    def num_mapped(self) -> int:
        return len(self._mapped)


def _num_bytes(pixels: SharedPixels) -> int:
    return math.prod(pixels.shape) * np.dtype(pixels.dtype).itemsize
