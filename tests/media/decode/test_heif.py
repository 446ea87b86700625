"""HEIC pictures with the extra `heif`, and what is said without it. See also test_orientation.py."""

from __future__ import annotations

import random
import sys
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest

from tests.media.samples import LIMITS, clip, encoded, noise, scaled_to
from trifocal.errors import RequestError
from trifocal.media.decode import heif
from trifocal.media.decode.image import open_bytes
from trifocal.media.reader import MediaReader

WHERE = "messages[0].content[1].image_url"


def head(*brands: bytes) -> bytes:
    body = b"ftyp" + brands[0] + bytes(4) + b"".join(brands[1:])
    return (len(body) + 4).to_bytes(4, "big") + body + b"\0\0\1\xbfmeta" + bytes(99)


@pytest.mark.parametrize(
    "data", [head(b"heic", b"mif1", b"heic"), head(b"mif1", b"heic"), head(b"msf1", b"hevc"), head(b"heix")]
)
def test_known_by_content(data: bytes) -> None:
    assert heif.is_heif(data)


@pytest.mark.parametrize("data", [
    head(b"avif", b"mif1", b"avif"), head(b"mif1", b"avif", b"heic"), head(b"isom", b"mp41"), clip(2), b"",
    b"\0\0\0\x18ftyp", encoded(PIL.Image.new("L", (9, 9)), "AVIF"),
])  # fmt: skip
def test_other_files(data: bytes) -> None:
    assert not heif.is_heif(data)


@pytest.fixture
def forgetful() -> object:
    """Whether the extra is there is found out anew."""
    heif.why_not.cache_clear()
    yield
    heif.why_not.cache_clear()


def test_refused_without_the_extra(forgetful: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", PIL.Image.MAX_IMAGE_PIXELS)
    with pytest.raises(RequestError, match=r"HEIC pictures need .* pip install 'trifocal\[heif\]'") as caught:
        open_bytes(head(b"heic", b"mif1"), WHERE, 10_000)
    assert caught.value.message.startswith(f"{WHERE}: ") and caught.value.param == "messages"


@pytest.mark.parametrize("version", ["1.23.5", "1.9.10", "0.23.6"])
def test_refused_with_an_old_library(version: str, forgetful: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever package brings it: distributions build it against their own."""
    monkeypatch.setitem(sys.modules, "pillow_heif", SimpleNamespace(libheif_version=lambda: version))
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", PIL.Image.MAX_IMAGE_PIXELS)
    with pytest.raises(
        RequestError, match=rf"libheif 1\.23\.6 or newer, but {version} is installed: pip install --upgrade"
    ):
        open_bytes(head(b"heic", b"mif1"), WHERE, 10_000)


@pytest.mark.parametrize("version", ["1.23.6", "1.23.10", "1.24", "2.0.0"])
def test_new_libraries(version: str, forgetful: object, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    module = SimpleNamespace(
        libheif_version=lambda: version, register_heif_opener=lambda **options: asked.append(options)
    )
    monkeypatch.setitem(sys.modules, "pillow_heif", module)
    assert heif.why_not() is None and heif.why_not() is None
    assert len(asked) == 1


# ------------------------------------------------------------------------------------------------- with the extra


def heic(picture: PIL.Image.Image, **options: object) -> bytes:
    pytest.importorskip("pillow_heif").register_heif_opener()
    return encoded(picture, "HEIF", **{"quality": -1, "chroma": 444, **options})


def load(reader: MediaReader, data: bytes) -> np.ndarray:
    return reader.load(reader.open("image", data, WHERE)).pixels


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA"])
def test_pixels(reader: MediaReader, mode: str) -> None:
    """As HEVC keeps them: lossless but for rounding between colours; transparency is white."""
    rgba = noise(40, 60, 4)
    rgba[:20, :, 3], rgba[20:, :, 3] = 255, 0
    picture = PIL.Image.fromarray(rgba).convert(mode)
    data = heic(picture)
    opened = reader.open("image", data, WHERE)
    assert (opened.height, opened.width) == (40, 60)
    expected = np.asarray(picture.convert("RGB")).astype(int)
    if mode in ("RGBA", "LA"):
        expected[20:] = 255
    assert np.abs(load(reader, data) - expected).max() <= 3


def test_ten_bits(reader: MediaReader) -> None:
    """What phones write for bright scenes."""
    values = np.linspace(0, 65535, 40 * 64).astype(np.uint16).reshape(40, 64)
    data = heic(PIL.Image.fromarray(values), chroma=420)
    assert np.abs(load(reader, data)[..., 0] - (values // 257).astype(int)).max() <= 3


def test_the_first_of_several_and_scaling(reader: MediaReader) -> None:
    pictures = [PIL.Image.fromarray(np.full((64, 64, 3), value, np.uint8)) for value in (40, 220)]
    data = heic(pictures[0], save_all=True, append_images=pictures[1:])
    small = reader.load(reader.open("image", data, WHERE), planner=scaled_to(10, 20)).pixels
    assert small.shape == (10, 20, 3) and np.abs(small.astype(int) - 40).max() <= 3


def test_limits_hold() -> None:
    """By the header, before pixels; and in no more memory than a decoder has."""
    data = heic(PIL.Image.new("RGB", (1500, 1000)), chroma=420, quality=10)
    small = closing(MediaReader(replace(LIMITS, max_image_pixels=1_000_000), 1))
    with small as reader, pytest.raises(RequestError, match=r"more than 1 megapixels \(--max-image-pixels\)"):
        reader.open("image", data, WHERE)
    with closing(MediaReader(replace(LIMITS, decode_memory_gib=20 / 1024), 1)) as reader:
        with pytest.raises(RequestError) as caught:
            load(reader, data)
        assert caught.value.status == 400
        assert load(reader, encoded(PIL.Image.fromarray(noise(20, 30)), "PNG")).shape == (20, 30, 3)


def test_broken_files(reader: MediaReader) -> None:
    """Cut off and broken at random: read or refused, and nothing else."""
    data, chance = heic(PIL.Image.fromarray(noise(64, 64)), chroma=420, quality=50), random.Random(1)
    for _ in range(60):
        broken = bytearray(data)
        if chance.random() < 0.3:
            del broken[chance.randrange(len(broken)) :]
        for _ in range(chance.randrange(8)):
            if broken:
                broken[chance.randrange(len(broken))] = chance.randrange(256)
        try:
            assert load(reader, bytes(broken)).ndim == 3
        except RequestError as error:
            assert error.message.startswith(WHERE) and error.status == 400
    for end in (len(data) // 2, len(data) - 200):
        with pytest.raises(RequestError):
            load(reader, data[:end])
