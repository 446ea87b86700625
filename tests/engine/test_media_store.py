"""Pixels in shared memory: one file for equal content, there as long as somebody uses it."""

from __future__ import annotations

import stat
from pathlib import Path

import numpy as np
import pytest

from trifocal.engine.media_store import MediaStore, map_pixels, private_folder, remove_folder
from trifocal.types import MediaItem, Prompt, SharedPixels, Span


def item(content_hash: bytes, seed: int) -> MediaItem:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 10), dtype=np.uint8)
    return MediaItem("image", content_hash, Span(0, 4), (1, 2, 3), pixels)


RED, BLUE = item(b"r" * 16, 1), item(b"b" * 16, 2)


def prompt(*media: MediaItem) -> Prompt:
    return Prompt([1] * 8, media, cache_salt="salt")


def test_the_mapping_gives_equal_pixels_and_keeps_the_rest(tmp_path: Path) -> None:
    shared = MediaStore(tmp_path).share("a", prompt(RED, BLUE))
    assert (shared.token_ids, shared.cache_salt) == ([1] * 8, "salt")
    for before, between in zip((RED, BLUE), shared.media, strict=True):
        assert isinstance(between.pixels, SharedPixels)
        after = map_pixels(between)
        assert isinstance(after.pixels, np.ndarray)
        np.testing.assert_array_equal(after.pixels, before.pixels)
        assert after.pixels.dtype == np.uint8
        assert not after.pixels.flags.writeable
        assert (after.span, after.grid, after.content_hash) == (before.span, before.grid, before.content_hash)
        assert map_pixels(after) is after


def test_pixels_that_are_no_contiguous_array_keep_their_order(tmp_path: Path) -> None:
    turned = MediaItem("image", b"t" * 16, Span(0, 4), (1,), RED.pixels.T)  # type: ignore[union-attr]
    shared = MediaStore(tmp_path).share("a", prompt(turned))
    np.testing.assert_array_equal(map_pixels(shared.media[0]).pixels, RED.pixels.T)  # type: ignore[union-attr,arg-type]


def test_a_file_is_there_until_its_last_user_is_gone(tmp_path: Path) -> None:
    store = MediaStore(tmp_path)
    store.share("a", prompt(RED, BLUE, RED))
    shared = store.share("b", prompt(RED))
    assert store.num_bytes == 120
    assert len(list(tmp_path.iterdir())) == 2
    store.release("a")
    store.release("a")
    assert (store.num_bytes, len(list(tmp_path.iterdir()))) == (60, 1)
    mapped = map_pixels(shared.media[0]).pixels
    store.release("b")
    assert (store.num_bytes, list(tmp_path.iterdir())) == (0, [])
    np.testing.assert_array_equal(mapped, RED.pixels)  # who has mapped it keeps it
    with pytest.raises(OSError, match="No such file"):
        map_pixels(shared.media[0])


def test_sharing_again_after_the_end_writes_again(tmp_path: Path) -> None:
    store = MediaStore(tmp_path)
    store.share("a", prompt(RED))
    store.release("a")
    shared = store.share("b", prompt(RED))
    np.testing.assert_array_equal(map_pixels(shared.media[0]).pixels, RED.pixels)


def test_a_full_memory_leaves_nothing_behind(tmp_path: Path) -> None:
    """`/dev/full` behind the item's name: every write to it fails as on a full device."""
    store = MediaStore(tmp_path)
    (tmp_path / BLUE.content_hash.hex()).symlink_to("/dev/full")
    with pytest.raises(OSError):
        store.share("a", prompt(RED, BLUE))
    store.release("a")
    assert (store.num_bytes, list(tmp_path.iterdir())) == (0, [])


def test_the_folder_is_private_and_goes_with_all_that_is_in_it() -> None:
    folder = private_folder()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    MediaStore(folder).share("a", prompt(RED))
    remove_folder(folder)
    assert not folder.exists()
    remove_folder(folder)
