"""The step note: which requests are being computed, written down where a crash cannot erase it.

A process that is killed says nothing any more. Before each step the engine writes the ids of its requests into a
nameless file in memory that the server process holds open as well.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection
from zlib import crc32

import msgspec

_HEADER_BYTES = 8  # checksum and length, four bytes each
_ids = msgspec.msgpack.Decoder(frozenset[str])


def nameless_file(name: str) -> int:
    """The descriptor of an empty file, in memory where that can be; gone with the last process that holds it."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class StepNote:
    """One engine's note; `fileno` is what its process inherits. Nothing is written in the beginning."""

    def __init__(self, fileno: int) -> None:
        self.fileno = fileno

    @classmethod
    def create(cls) -> StepNote:
        return cls(nameless_file("trifocal-step"))

    def write(self, request_ids: Collection[str]) -> None:
        """Replace what is written."""
        data = msgspec.msgpack.encode(list(request_ids))
        header = crc32(data).to_bytes(4, "little") + len(data).to_bytes(4, "little")
        os.pwrite(self.fileno, header + data, 0)

    def read(self) -> frozenset[str] | None:
        """What is written; None if its writer died while writing."""
        header = os.pread(self.fileno, _HEADER_BYTES, 0)
        if not header:
            return frozenset()
        data = os.pread(self.fileno, int.from_bytes(header[4:], "little"), _HEADER_BYTES)
        return _ids.decode(data) if crc32(data).to_bytes(4, "little") == header[:4] else None

    def close(self) -> None:
        """Forget the file; it is gone when both processes have."""
        os.close(self.fileno)
