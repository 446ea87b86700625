"""Pixels in shared memory: written once by the server process, mapped by the engine process.

Plain files in a private folder on a memory file system: they can be listed, a crashed process leaves none behind that
its partner cannot remove, and nothing registers them with anybody (`multiprocessing.shared_memory` does).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trifocal.types import MediaItem, Prompt, SharedPixels

_MEMORY_FOLDER = Path("/dev/shm")


def private_folder() -> Path:
    """A new folder (mode 0700) for sockets and pixels, in memory where the system has such a place."""
    parent = _MEMORY_FOLDER if _MEMORY_FOLDER.is_dir() and os.access(_MEMORY_FOLDER, os.W_OK) else None
    return Path(tempfile.mkdtemp(prefix="trifocal-", dir=parent))


class MediaStore:
    """The server's side. One file per content hash, removed when the last request that uses it ends."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._users: dict[bytes, set[str]] = {}
        self._num_bytes: dict[bytes, int] = {}

    @property
    def num_bytes(self) -> int:
        """Shared memory in use."""
        return sum(self._num_bytes.values())

    def share(self, request_id: str, prompt: Prompt) -> Prompt:
        """The prompt with its pixels in shared memory, held until `release(request_id)`."""
        return replace(prompt, media=tuple(self._share(request_id, item) for item in prompt.media))

    def _share(self, request_id: str, item: MediaItem) -> MediaItem:
        if isinstance(item.pixels, SharedPixels):
            return item
        path = self._path(item.content_hash)
        users = self._users.get(item.content_hash)
        if users is None:
            _write(item.pixels, path)
            users = self._users[item.content_hash] = set()
            self._num_bytes[item.content_hash] = item.pixels.nbytes
        users.add(request_id)
        return replace(item, pixels=SharedPixels(str(path), item.pixels.shape, str(item.pixels.dtype)))

    def release(self, request_id: str) -> None:
        """The request has ended; files that nobody else uses are removed."""
        for content_hash in [key for key, users in self._users.items() if request_id in users]:
            users = self._users[content_hash]
            users.discard(request_id)
            if not users:
                del self._users[content_hash], self._num_bytes[content_hash]
                self._path(content_hash).unlink(missing_ok=True)

    def _path(self, content_hash: bytes) -> Path:
        return self._folder / content_hash.hex()


def _write(pixels: NDArray[np.uint8], path: Path) -> None:
    try:
        path.write_bytes(np.ascontiguousarray(pixels).data)  # ndarray.tofile may lose an error of its last write
    except OSError:  # shared memory is full (64 MiB in a container by default): leave what there is to others
        path.unlink(missing_ok=True)
        raise


def map_pixels(item: MediaItem) -> MediaItem:
    """The engine's side: the item with its pixels mapped, read-only. Raises `OSError` if the file is gone."""
    shared = item.pixels
    if not isinstance(shared, SharedPixels):
        return item
    pixels: NDArray[np.uint8] = np.memmap(shared.path, dtype=shared.dtype, mode="r", shape=shared.shape)
    return replace(item, pixels=pixels)


def remove_folder(folder: Path) -> None:
    """Remove a private folder with all that is in it."""
    shutil.rmtree(folder, ignore_errors=True)
