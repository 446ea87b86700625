"""Pixels in shared memory: written once by the server process, mapped for the workers (`worker/pixels.py`).

The memory has no name in any file system: the engine opens it through the server's entry in /proc, and it is gone with
the last process that uses it. So nothing is left behind however the two end, and a new engine finds all of it.
"""

from __future__ import annotations

import os
import resource
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trifocal.types import MediaItem, Prompt, SharedPixels

_NUM_FILES = 1 << 16


def _has_nameless_memory() -> bool:
    """Whether a child process can open our nameless memory: on Linux, unless this process is closed to inspection."""
    proc = Path("/proc/self/fd")
    return hasattr(os, "memfd_create") and proc.is_dir() and proc.stat().st_uid == os.geteuid()


@dataclass
class _Entry:
    fileno: int
    pixels: SharedPixels
    num_bytes: int
    users: set[str] = field(default_factory=set)


class MediaStore:
    """The server's side. One piece of memory per content hash, given back when its last user releases it.

    Where there is no nameless memory it is a temporary file, which only its last user or `close` removes.
    """

    def __init__(self) -> None:
        self._entries: dict[bytes, _Entry] = {}
        self._is_nameless = _has_nameless_memory()
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        with suppress(ValueError, OSError):  # one open file per picture: 1024 are few beside as many connections
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(_NUM_FILES, most), most))

    @property
    def num_bytes(self) -> int:
        return sum(entry.num_bytes for entry in self._entries.values())

    def share(self, users: Iterable[str], prompt: Prompt) -> Prompt:
        """The prompt with its pixels in shared memory, held until each of `users` has released it.

        Raises `OSError` where memory or open files have run out.
        """
        users = list(users)
        return replace(prompt, media=tuple(self._share(users, item) for item in prompt.media))

    def _share(self, users: list[str], item: MediaItem) -> MediaItem:
        if isinstance(item.pixels, SharedPixels):
            return item
        entry = self._entries.get(item.content_hash)
        if entry is None:
            entry = self._entries[item.content_hash] = self._write(item.pixels)
        entry.users.update(users)
        return replace(item, pixels=entry.pixels)

    def _write(self, pixels: NDArray[np.uint8]) -> _Entry:
        if self._is_nameless:
            fileno = os.memfd_create("trifocal-media")
            path = f"/proc/{os.getpid()}/fd/{fileno}"
        else:
            fileno, path = tempfile.mkstemp(prefix="trifocal-media-")
        entry = _Entry(fileno, SharedPixels(path, pixels.shape, str(pixels.dtype)), pixels.nbytes)
        try:
            with open(fileno, "wb", closefd=False) as file:
                file.write(np.ascontiguousarray(pixels).data)
        except OSError:  # memory is full: leave what there is to others
            self._drop(entry)
            raise
        return entry

    def release(self, users: Iterable[str]) -> None:
        """These users do not need their media any more."""
        for content_hash, entry in list(self._entries.items()):
            entry.users.difference_update(users)
            if not entry.users:
                self._drop(self._entries.pop(content_hash))

    def close(self) -> None:
        """Give everything back."""
        for entry in self._entries.values():
            self._drop(entry)
        self._entries.clear()

    def _drop(self, entry: _Entry) -> None:
        os.close(entry.fileno)
        if not self._is_nameless:
            os.unlink(entry.pixels.path)
