"""Decoded media by the bytes of their files: what a conversation sends again with every turn is decoded once."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Hashable
from threading import Lock
from typing import TypeVar

from trifocal.media.hashing import HASH_BYTES

T = TypeVar("T")
_ENTRY_BYTES = 512  # of one entry beside its pixels, roughly


class MediaCache:
    """Bounded in bytes; the least recently used go first. Safe to use from several threads.

    A key begins with a file's `name` and holds all else that decides about the value, its type included.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._entries: OrderedDict[Hashable, tuple[object, int]] = OrderedDict()
        self._num_bytes = 0
        self._lock = Lock()

    @staticmethod
    def name(data: bytes, salt: str | None) -> bytes:
        """A name of the bytes that only those who have the salt share: the others' time tells nothing about them."""
        salt_bytes = (salt or "").encode(errors="surrogatepass")
        digest = hashlib.blake2b(len(salt_bytes).to_bytes(8, "little") + salt_bytes, digest_size=HASH_BYTES)
        digest.update(data)
        return digest.digest()

    def get(self, key: Hashable, kind: type[T]) -> T | None:
        """What was added under `key`, of type `kind`."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            self._entries.move_to_end(key)
        value = entry[0]
        assert isinstance(value, kind)
        return value

    def add(self, key: Hashable, value: object, num_bytes: int = 0) -> None:
        """Keep `value`, which must not change any more, if it fits."""
        num_bytes += _ENTRY_BYTES
        if num_bytes > self._capacity:
            return
        with self._lock:
            _, replaced = self._entries.pop(key, (None, 0))
            self._entries[key] = (value, num_bytes)
            self._num_bytes += num_bytes - replaced
            while self._num_bytes > self._capacity:
                _, (_, dropped) = self._entries.popitem(last=False)
                self._num_bytes -= dropped

    @property
    def num_bytes(self) -> int:
        return self._num_bytes
