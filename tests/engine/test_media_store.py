"""Pixels in shared memory: one piece for equal content, there as long as somebody uses it, without a name."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.engine.processes import open_memory
from trifocal.engine.media_store import MediaStore
from trifocal.errors import RequestError
from trifocal.types import MediaItem, Prompt, SharedPixels, Span
from trifocal.worker.pixels import LocalPixels


def item(content_hash: bytes, seed: int) -> MediaItem:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 10), dtype=np.uint8)
    return MediaItem("image", content_hash, Span(0, 4), (1, 2, 3), pixels)


SOURCE = LocalPixels()
RED, BLUE = item(b"r" * 16, 1), item(b"b" * 16, 2)


def read(item: MediaItem) -> NDArray[np.uint8]:
    return SOURCE.array(SOURCE.hold(item))


def prompt(*media: MediaItem) -> Prompt:
    return Prompt([1] * 8, media, cache_salt="salt")


@pytest.fixture(params=["nameless memory", "temporary files"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MediaStore]:
    if request.param == "temporary files":
        monkeypatch.delattr(os, "memfd_create")
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = open_memory()
    store = MediaStore()
    yield store
    store.close()
    assert (open_memory(), list(tmp_path.iterdir())) == (before, [])


def test_the_mapping_gives_equal_pixels_and_keeps_the_rest(store: MediaStore) -> None:
    shared = store.share(["a"], prompt(RED, BLUE))
    assert (shared.token_ids, shared.cache_salt) == ([1] * 8, "salt")
    for before, between in zip((RED, BLUE), shared.media, strict=True):
        assert isinstance(between.pixels, SharedPixels)
        after = SOURCE.hold(between)
        pixels = SOURCE.array(after)
        np.testing.assert_array_equal(pixels, before.pixels)
        assert pixels.dtype == np.uint8
        assert not pixels.flags.writeable
        assert (after.span, after.grid, after.content_hash) == (before.span, before.grid, before.content_hash)
        assert SOURCE.hold(before) is before and SOURCE.array(before) is before.pixels, "it was an array already"


def test_another_process_can_map_them(store: MediaStore) -> None:
    shared = store.share(["a"], prompt(RED)).media[0].pixels
    assert isinstance(shared, SharedPixels)
    code = "import sys, numpy; print(numpy.memmap(sys.argv[1], dtype='uint8', mode='r').sum())"
    seen = subprocess.run([sys.executable, "-c", code, shared.path], capture_output=True, text=True, check=True)
    assert int(seen.stdout) == int(RED.pixels.sum())  # type: ignore[union-attr]


def test_pixels_that_are_no_contiguous_array_keep_their_order(store: MediaStore) -> None:
    turned = MediaItem("image", b"t" * 16, Span(0, 4), (1,), RED.pixels.T)  # type: ignore[union-attr]
    shared = store.share(["a"], prompt(turned))
    np.testing.assert_array_equal(read(shared.media[0]), RED.pixels.T)  # type: ignore[union-attr]


def test_memory_is_there_until_its_last_user_is_gone(store: MediaStore) -> None:
    store.share(["a", "twin of a"], prompt(RED, BLUE, RED))
    shared = store.share(["b"], prompt(RED))
    assert store.num_bytes == 120
    store.release(["a"])
    store.release(["a"])
    assert store.num_bytes == 120
    store.release(["twin of a"])
    assert store.num_bytes == 60
    held = SOURCE.hold(shared.media[0])
    store.release(["b"])
    assert store.num_bytes == 0
    with pytest.raises(RequestError, match="media are gone"):
        SOURCE.hold(shared.media[0])
    np.testing.assert_array_equal(SOURCE.array(held), RED.pixels)  # who holds it keeps it


def test_mappings_are_counted_until_nothing_looks_at_the_pixels(store: MediaStore) -> None:
    shared = store.share(["a"], prompt(RED, BLUE)).media
    source = LocalPixels()
    red, blue = (source.hold(each) for each in shared)
    assert source.num_mapped == 2
    part = source.array(red)[1:, 2:]
    del red, blue
    assert source.num_mapped == 1, "a part keeps the whole"
    np.testing.assert_array_equal(part, RED.pixels[1:, 2:])  # type: ignore[index]
    del part
    assert source.num_mapped == 0


def test_sharing_again_after_the_end_writes_again(store: MediaStore) -> None:
    store.share(["a"], prompt(RED))
    store.release(["a"])
    shared = store.share(["b"], prompt(RED))
    np.testing.assert_array_equal(read(shared.media[0]), RED.pixels)


def test_a_full_memory_leaves_nothing_behind(store: MediaStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """`/dev/full` in the place of the second item's memory: every write to it fails as on a full device."""
    store.share(["a"], prompt(RED))
    full = os.open("/dev/full", os.O_RDWR)
    if hasattr(os, "memfd_create"):
        monkeypatch.setattr(os, "memfd_create", lambda name: full)
    else:
        monkeypatch.setattr("tempfile.mkstemp", lambda prefix: (full, "/dev/full"))
        monkeypatch.setattr(os, "unlink", lambda path: None)
    with pytest.raises(OSError, match="No space left"):
        store.share(["b"], prompt(RED, BLUE))
    monkeypatch.undo()
    store.release(["b"])
    assert store.num_bytes == 60
    with pytest.raises(OSError):
        os.fstat(full)
    store.release(["a"])
