"""The name of a media item's content: 16 bytes, equal only if the model is given exactly the same."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from trifocal.types import MediaItem

HASH_BYTES = 16


def content_hash(pixels: NDArray[np.uint8], *facts: object) -> bytes:
    """BLAKE2b over `pixels` and `facts`: family, modality, grid, timing and whatever else decides what the model sees.

    128 bits: no accident ever makes two pictures one, and nobody can make one on purpose below 2**64 tries.
    """
    header = repr((pixels.shape, *facts)).encode()
    digest = hashlib.blake2b(len(header).to_bytes(8, "little") + header, digest_size=HASH_BYTES)
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.digest()


def salted(item: MediaItem, salt: str | None) -> MediaItem:
    """`item` under its tenant's own name: requests with another salt share neither its embeddings nor its pixels.

    Otherwise a tenant could learn from an answer's time whether others have sent a picture.
    """
    if not salt:
        return item
    key = hashlib.blake2b(salt.encode(errors="surrogatepass"), digest_size=64).digest()  # salts may be of any length
    return replace(item, content_hash=hashlib.blake2b(item.content_hash, key=key, digest_size=HASH_BYTES).digest())
