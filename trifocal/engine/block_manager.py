"""KV blocks: who owns which, which are free, and which hold a prefix that can be used again.

Prefix reuse follows vLLM's design of chained block hashes; a hash covers the media inside a block (content hash and
offset), never token ids alone, because every picture has the same placeholder ids.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable

from trifocal.engine.sequence import Sequence

_DIGEST_BYTES = 16


class BlockManager:
    """`num_blocks` blocks of `block_size` tokens. A block is free when no sequence refers to it; its content stays
    usable under its hash until the block is handed out again, least recently freed first."""

    def __init__(self, num_blocks: int, block_size: int, *, enable_prefix_caching: bool = True) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.enable_prefix_caching = enable_prefix_caching
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._refs = [0] * num_blocks
        self._hash_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return self.num_blocks - len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that `num_tokens` tokens take."""
        return -(-num_tokens // self.block_size)

    # ------------------------------------------------------------------------------------------ prefix reuse

    def take_prefix(self, seq: Sequence) -> int:
        """Give a sequence without blocks the cached blocks of its beginning; returns the tokens they hold.

        At least one token is left to compute: its logits choose the next one.
        """
        if not self.enable_prefix_caching:
            return 0
        self._extend_hashes(seq)
        usable = min(len(seq.block_hashes), (seq.num_tokens - 1) // self.block_size)
        for block_hash in seq.block_hashes[:usable]:
            block = self._block_of.get(block_hash)
            if block is None:
                break
            self._take(block)
            seq.block_ids.append(block)
        seq.num_published = len(seq.block_ids)
        return len(seq.block_ids) * self.block_size

    def publish(self, seq: Sequence) -> None:
        """Make the sequence's full, computed (or planned) blocks of known tokens available to others.

        A planned step writes what it will write for known tokens whatever becomes of drafts, which are none.
        """
        if not self.enable_prefix_caching:
            return
        self._extend_hashes(seq)
        num_full = min(seq.num_computed_tokens // self.block_size, len(seq.block_hashes))
        for block, block_hash in zip(
            seq.block_ids[seq.num_published : num_full], seq.block_hashes[seq.num_published : num_full], strict=True
        ):
            if block_hash not in self._block_of:  # else another sequence computed the same at the same time
                self._block_of[block_hash] = block
                self._hash_of[block] = block_hash
        seq.num_published = max(seq.num_published, num_full)

    def withdraw(self, blocks: Iterable[tuple[int, bytes]]) -> None:
        """Nobody is to take these blocks under these hashes any more: what they hold is wrong."""
        for block, block_hash in blocks:
            if self._hash_of.get(block) == block_hash:
                self._unpublish(block)

    def _extend_hashes(self, seq: Sequence) -> None:
        size = self.block_size
        for index in range(len(seq.block_hashes), seq.num_tokens // size):
            seq.block_hashes.append(_hash_block(seq, index * size, (index + 1) * size))

    # ------------------------------------------------------------------------------------------ ownership

    def can_grow(self, seq: Sequence, num_tokens: int) -> bool:
        """Whether `grow` would succeed."""
        return self.blocks_for(num_tokens) - len(seq.block_ids) <= len(self._free)

    def grow(self, seq: Sequence, num_tokens: int) -> list[int]:
        """Give the sequence blocks for `num_tokens` tokens in all; returns the new ones. `can_grow` must hold."""
        added = []
        for _ in range(self.blocks_for(num_tokens) - len(seq.block_ids)):
            block = next(iter(self._free))
            self._take(block)
            self._unpublish(block)
            added.append(block)
        seq.block_ids.extend(added)
        return added

    def shrink(self, seq: Sequence, num_tokens: int) -> None:
        """Take from the sequence the blocks behind its first `num_tokens` tokens; none of them was published."""
        first = self.blocks_for(num_tokens)
        assert first >= seq.num_published, "a block of known tokens stays"
        for block in reversed(seq.block_ids[first:]):
            self._give_back(block)
        del seq.block_ids[first:]

    def release(self, seq: Sequence) -> None:
        """Take all blocks from the sequence. Its tail is reused first: beginnings are worth more."""
        for block in reversed(seq.block_ids):
            self._give_back(block)
        seq.block_ids = []
        seq.num_published = 0

    def _give_back(self, block: int) -> None:
        self._refs[block] -= 1
        if self._refs[block] == 0:
            self._free[block] = None

    def _take(self, block: int) -> None:
        if self._refs[block] == 0:
            del self._free[block]
        self._refs[block] += 1

    def _unpublish(self, block: int) -> None:
        block_hash = self._hash_of.pop(block, None)
        if block_hash is not None:
            del self._block_of[block_hash]


def _hash_block(seq: Sequence, start: int, end: int) -> bytes:
    parent = seq.block_hashes[-1] if seq.block_hashes else _root(seq.request.prompt.cache_salt, seq.cache_key_extra)
    digest = hashlib.blake2b(parent, digest_size=_DIGEST_BYTES)
    digest.update(array("q", seq.token_ids(start, end)).tobytes())
    for item in seq.media:
        if item.span.offset < end and item.span.end > start:
            digest.update(item.content_hash)
            digest.update(array("q", [item.span.offset - start, item.span.length]).tobytes())
    return digest.digest()


def _root(salt: str | None, extra: bytes) -> bytes:
    """As long as any other parent, so that no choice of a salt can pass for one, nor for another `extra`."""
    text = (salt or "").encode(errors="surrogatepass")
    return hashlib.blake2b(array("q", [len(text)]).tobytes() + text + extra, digest_size=_DIGEST_BYTES).digest()
