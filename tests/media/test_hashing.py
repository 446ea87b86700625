"""The names of media: equal only where the model is given the same, and only for one tenant."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import tiny
from tests.media.samples import clip, data_url, encoded, noise
from trifocal.config.engine import EngineArgs, resolve
from trifocal.media.hashing import HASH_BYTES, content_hash, salted
from trifocal.prompt.builder import PromptBuilder
from trifocal.types import MediaItem, Span

PICTURE = PIL.Image.fromarray(noise(84, 112))


def test_everything_counts() -> None:
    pixels = noise(4, 6)
    other = pixels.copy()
    other[0, 0, 0] ^= 1
    names = [
        content_hash(pixels, "family", "image", (1, 2)),
        content_hash(other, "family", "image", (1, 2)),
        content_hash(pixels.reshape(6, 4, 3), "family", "image", (1, 2)),
        content_hash(pixels, "other", "image", (1, 2)),
        content_hash(pixels, "family", "video", (1, 2)),
        content_hash(pixels, "family", "image", (2, 1)),
        content_hash(pixels, "family", "image", (1, 2), 0.5),
        content_hash(pixels, "family", "image", "(1, 2)"),
        content_hash(pixels),
    ]
    assert len(set(names)) == len(names) and {len(name) for name in names} == {HASH_BYTES}
    assert content_hash(pixels[:, ::-1][:, ::-1], "family", "image", (1, 2)) == names[0]  # however it lies in memory


@given(st.binary(max_size=20), st.binary(max_size=20), st.text(max_size=5), st.text(max_size=5))
def test_facts_do_not_run_into_pixels(one: bytes, two: bytes, fact: str, other: str) -> None:
    """No choice of pixels and facts passes for another."""
    same = (one, fact) == (two, other)
    first = content_hash(np.frombuffer(one, np.uint8), fact)
    assert (content_hash(np.frombuffer(two, np.uint8), other) == first) == same


# ------------------------------------------------------------------------------------------------- tenants


def item(name: bytes = b"n" * 16) -> MediaItem:
    return MediaItem("image", name, Span(0, 1), (1, 2, 2), np.zeros((4, 12), np.uint8))


def test_salts_separate() -> None:
    salts = [None, "a", "b", "a\0", "A", "\ud800", "x" * 10_000]
    names = [salted(item(), salt).content_hash for salt in salts]
    assert len(set(names)) == len(salts) and {len(name) for name in names} == {HASH_BYTES}
    assert salted(item(), "a").content_hash == names[1]
    assert salted(item(), "").content_hash == item().content_hash == names[0]
    assert salted(item(b"m" * 16), "a").content_hash != names[1]


# ------------------------------------------------------------------------------------------------- whole prompts


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PromptBuilder]:
    folder: Path = tiny.write_checkpoint(tmp_path_factory.mktemp("hashing") / "model")
    made = PromptBuilder(resolve(EngineArgs(model=str(folder), device="cpu")))
    yield made
    made.close()


async def name_of(builder: PromptBuilder, data: bytes, kind: str = "image_url", **options: Any) -> bytes:
    content = [{"type": kind, kind: {"url": data_url(data)}}]
    [media] = (await builder.chat([{"role": "user", "content": content}], **options)).media
    return media.content_hash


async def test_pixels_count_and_files_do_not(builder: PromptBuilder) -> None:
    name = await name_of(builder, encoded(PICTURE, "PNG"))
    exif = PIL.Image.Exif()
    exif[0x0112] = 3
    assert await name_of(builder, encoded(PICTURE, "BMP")) == name
    assert await name_of(builder, encoded(PICTURE, "PNG", compress_level=0)) == name
    assert await name_of(builder, encoded(PICTURE.convert("RGBA"), "PNG")) == name
    assert await name_of(builder, encoded(PICTURE.rotate(180), "PNG", exif=exif)) == name
    different = [
        PICTURE.convert("L"),
        PICTURE.rotate(180),
        PICTURE.transpose(PIL.Image.Transpose.TRANSPOSE),
        PICTURE.resize((140, 84)),
        PICTURE.point(lambda value: value ^ 1),
    ]
    assert len({name, *[await name_of(builder, encoded(picture, "PNG")) for picture in different]}) == 6


async def test_options_count(builder: PromptBuilder) -> None:
    data, moving = encoded(PIL.Image.fromarray(noise(300, 300)), "PNG"), clip(80, 10, size=(96, 64))
    names = [await name_of(builder, data, mm_processor_kwargs=options) for options in ({}, {"max_pixels": 8 * 784})]
    names += [
        await name_of(builder, moving, "video_url", mm_processor_kwargs=options)
        for options in ({}, {"fps": 1}, {"num_frames": 4}, {"max_pixels": 2 * 784})
    ]
    assert len(set(names)) == len(names)


async def test_the_same_frames_at_another_rate_are_another_clip(builder: PromptBuilder) -> None:
    slow, fast = (clip(8, rate, size=(64, 64)) for rate in (2, 4))
    every = {"num_frames": 8}
    names = [await name_of(builder, data, "video_url", mm_processor_kwargs=every) for data in (slow, fast)]
    assert names[0] != names[1]


async def test_salts_reach_every_item(builder: PromptBuilder) -> None:
    data = encoded(PICTURE, "PNG")
    names = [await name_of(builder, data, cache_salt=salt) for salt in (None, "a", "b", "a")]
    assert len(set(names)) == 3 and names[1] == names[3]
