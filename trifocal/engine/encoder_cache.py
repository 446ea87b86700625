"""Which media embeddings the workers hold: a cache bounded in bytes, keyed by content hash."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from trifocal.engine.sequence import Sequence


@dataclass(slots=True)
class _Entry:
    num_bytes: int
    users: set[str] = field(default_factory=set)


class EncoderCache:
    """Policy only; the embeddings lie with the workers. An entry that a sequence pins is never dropped; the others
    go least recently used first, when room is needed."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._num_bytes = 0
        self._dropped: list[bytes] = []

    @property
    def num_bytes(self) -> int:
        return self._num_bytes

    @property
    def num_items(self) -> int:
        """Entries held, pinned or not."""
        return len(self._entries)

    @property
    def has_dropped(self) -> bool:
        """Whether there are hashes for `take_dropped`."""
        return bool(self._dropped)

    @property
    def num_pinned_bytes(self) -> int:
        """Bytes that sequences still need."""
        return sum(entry.num_bytes for entry in self._entries.values() if entry.users)

    def is_pinned(self, seq: Sequence, content_hash: bytes) -> bool:
        """Whether the sequence holds the entry; what was dropped (a failed encoding) nobody holds any more."""
        entry = self._entries.get(content_hash)
        return entry is not None and seq.request_id in entry.users

    def pin(self, seq: Sequence, content_hash: bytes) -> bool:
        """Hold an entry for the sequence; False if it is not there."""
        entry = self._entries.get(content_hash)
        if entry is None:
            return False
        self._entries.move_to_end(content_hash)
        entry.users.add(seq.request_id)
        seq.pinned.add(content_hash)
        return True

    def can_hold(self, wanted: dict[bytes, int]) -> bool:
        """Whether all of `wanted` (bytes by hash) could be held at once beside what is pinned."""
        pinned = {key: entry.num_bytes for key, entry in self._entries.items() if entry.users}
        return sum((wanted | pinned).values()) <= self.capacity

    def add(self, seq: Sequence, content_hash: bytes, num_bytes: int) -> bool:
        """Make room for a new entry and pin it; False if pinned entries leave no room."""
        if num_bytes > self.capacity - self.num_pinned_bytes:
            return False
        for other in [key for key, entry in self._entries.items() if not entry.users]:
            if self._num_bytes + num_bytes <= self.capacity:
                break
            self.drop(other)
        self._entries[content_hash] = _Entry(num_bytes)
        self._num_bytes += num_bytes
        return self.pin(seq, content_hash)

    def unpin(self, seq: Sequence, content_hash: bytes) -> None:
        """The sequence does not need the entry any more."""
        seq.pinned.discard(content_hash)
        entry = self._entries.get(content_hash)
        if entry is not None:
            entry.users.discard(seq.request_id)

    def release(self, seq: Sequence) -> None:
        """Unpin everything that the sequence holds."""
        for content_hash in list(seq.pinned):
            self.unpin(seq, content_hash)

    def drop(self, content_hash: bytes) -> None:
        """Forget an entry, pinned or not; the workers are told with the next plan."""
        entry = self._entries.pop(content_hash, None)
        if entry is not None:
            self._num_bytes -= entry.num_bytes
            self._dropped.append(content_hash)

    def take_dropped(self) -> list[bytes]:
        """Hashes dropped since the last call."""
        dropped, self._dropped = self._dropped, []
        return dropped
