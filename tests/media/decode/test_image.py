"""Pictures of every kind that clients send, upright, on white, in 8 bits; broken ones refused by name."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
from numpy.typing import NDArray

from tests.media.samples import LIMITS, encoded, noise
from trifocal.errors import RequestError
from trifocal.media.reader import MediaReader

WHERE = "messages[0].content[1].image_url"
Load = Callable[[Any], NDArray[np.uint8]]


@pytest.fixture
def load(reader: MediaReader) -> Load:
    """Open and decode."""
    return lambda source: reader.load(reader.open("image", source, WHERE)).pixels


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP", "PPM"])
def test_lossless_kinds_come_back(kind: str, load: Load) -> None:
    pixels = noise(20, 30)
    options = {"lossless": True} if kind == "WEBP" else {}
    np.testing.assert_array_equal(load(encoded(PIL.Image.fromarray(pixels), kind, **options)), pixels)


def test_jpeg_is_as_pil_decodes_it(load: Load) -> None:
    data = encoded(PIL.Image.fromarray(noise(40, 30)), "JPEG")
    np.testing.assert_array_equal(load(data), np.asarray(PIL.Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exif_orientation(reader: MediaReader, orientation: int, kind: str) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    data = encoded(PIL.Image.fromarray(noise(20, 30)), kind, exif=exif)
    expected = np.asarray(PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(data))))
    opened = reader.open("image", data, WHERE)
    np.testing.assert_array_equal(reader.load(opened).pixels, expected)
    if kind == "JPEG":
        assert (opened.height, opened.width) == expected.shape[:2]


def test_broken_exif_is_ignored(load: Load) -> None:
    data = encoded(PIL.Image.fromarray(noise(20, 30)), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert load(data).shape == (20, 30, 3)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "L", "RGB"])
def test_transparency_is_white(mode: str, load: Load) -> None:
    rgba = np.zeros((2, 3, 4), np.uint8)  # black and transparent, but for one opaque pixel
    rgba[0, 0] = (0, 0, 0, 255)
    if mode in ("L", "RGB", "P"):
        picture = PIL.Image.new(mode, (3, 2), 7 if mode != "RGB" else (7, 7, 7))
        picture.putpixel((0, 0), 0 if mode != "RGB" else (0, 0, 0))
        if mode == "P":
            picture.putpalette([0, 0, 0] * 256)
        data: Any = encoded(picture, "PNG", transparency=7 if mode != "RGB" else (7, 7, 7))
    else:
        data = PIL.Image.fromarray(rgba).convert(mode)
    pixels = load(data)
    assert pixels[0, 0].tolist() == [0, 0, 0]
    assert (pixels.reshape(-1, 3)[1:] == 255).all()


def test_half_transparent_is_half_white(load: Load) -> None:
    picture = PIL.Image.new("RGBA", (1, 1), (0, 0, 255, 128))
    assert load(encoded(picture, "PNG"))[0, 0].tolist() == [127, 127, 255]


def test_sixteen_bits_are_scaled(load: Load) -> None:
    values = np.array([[0, 256, 257, 32768, 65535]], np.uint16)
    for data in (encoded(PIL.Image.fromarray(values), "PNG"), encoded(PIL.Image.fromarray(values), "TIFF")):
        assert load(data)[0, :, 0].tolist() == [0, 1, 1, 128, 255]
    assert load(PIL.Image.fromarray(values.astype(np.int32)))[0, :, 1].tolist() == [0, 1, 1, 128, 255]
    assert load(PIL.Image.fromarray(np.array([[0, 200]], np.int32)))[0, :, 2].tolist() == [0, 200]


def tiff_of_12_bits(values: list[int]) -> bytes:
    """One row, packed as the standard has it: two values in three bytes."""
    packed = int("".join(f"{value:012b}" for value in values), 2).to_bytes(len(values) * 3 // 2, "big")
    tags = {256: len(values), 257: 1, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: len(packed)}
    start = 8 + len(packed) + len(packed) % 2
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = b"II*\0" + struct.pack("<I", start)
    return (head + packed).ljust(start, b"\0") + struct.pack("<H", len(tags)) + entries + bytes(4)


def test_twelve_bits(load: Load) -> None:
    """Scaled by 4095 where the file says that it has twelve; in one of sixteen they are a dark picture."""
    values = [0, 16, 2048, 4095]
    assert load(tiff_of_12_bits(values))[0, :, 0].tolist() == [0, 1, 128, 255]
    assert load(encoded(PIL.Image.fromarray(np.array([values], np.uint16)), "TIFF"))[0, :, 0].tolist() == [0, 0, 8, 16]


def test_floats_are_clipped(load: Load) -> None:
    assert load(PIL.Image.fromarray(np.array([[-3.0, 7.0, 300.0, np.nan]], np.float32)))[0, :, 0].tolist() == [
        0, 7, 255, 0,
    ]  # fmt: skip
    assert load(encoded(PIL.Image.fromarray(np.array([[0.5, 80.9]], np.float32)), "TIFF"))[0, :, 0].tolist() == [0, 80]


@pytest.mark.parametrize("mode", ["1", "L", "CMYK", "YCbCr", "HSV", "P"])
def test_other_modes_are_as_pil_converts_them(mode: str, load: Load) -> None:
    picture = PIL.Image.fromarray(noise(9, 7)).convert(mode)
    np.testing.assert_array_equal(load(picture), np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_first_frame_of_an_animation(kind: str, load: Load) -> None:
    frames = [PIL.Image.new("RGB", (8, 6), (value, value, value)) for value in (10, 200)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert np.unique(load(data)).tolist() == [10]


def test_arrays(load: Load) -> None:
    pixels = noise(5, 4)
    np.testing.assert_array_equal(load(pixels), pixels)
    assert load(noise(5, 4, 1)[..., 0]).shape == (5, 4, 3)
    assert load(noise(5, 4, 4)).shape == (5, 4, 3)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((4, 4, 3), np.int32), "must be uint8 .* or float"),
        (np.zeros((4, 4, 2), np.uint8), r"\[4, 4, 2\]"),
        (np.zeros((0, 4, 3), np.uint8), "4x0"),
        ({"url": 3}, "dict"),
        ([[1, 2]], "list"),
        (5, "int"),
    ],
)
def test_bad_objects(source: Any, message: str, load: Load) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        load(source)
    assert caught.value.message.startswith(WHERE)


def png_header(width: int, height: int) -> bytes:
    """A PNG that announces a size and has no pixels."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\0IDAT\x35\xaf\x06\x1e\0\0\0\0IEND\xaeB`\x82"


GOOD = encoded(PIL.Image.fromarray(noise(64, 64)), "PNG")
JPEG = encoded(PIL.Image.fromarray(noise(64, 64)), "JPEG")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"hello, I am a text with the name cat.png", "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (GOOD[: len(GOOD) // 2], "broken or cut off"),
        (JPEG[: len(JPEG) // 2], "broken or cut off"),
        (GOOD[:40], "cut off|not an image|cannot be read"),
        (png_header(0, 5), "not an image|size is|cannot be read"),
        (png_header(20000, 20000), "megapixels"),
        (png_header(12000, 11000), "megapixels"),
    ],
)
def test_bad_files_are_refused_by_name(data: bytes, message: str, load: Load) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        load(data)
    error = caught.value
    assert error.message.startswith(f"{WHERE}: ") and (error.param, error.status) == ("messages", 400)


def test_size_is_refused_before_decoding() -> None:
    """By the header alone: there are no pixels in this file."""
    with closing(MediaReader(replace(LIMITS, max_image_pixels=4095), 1)) as small:
        for source in (png_header(64, 64), np.zeros((64, 64, 3), np.uint8), PIL.Image.new("RGB", (64, 64))):
            with pytest.raises(RequestError, match=r"more than 0.004095 megapixels \(--max-image-pixels\)"):
                small.open("image", source, WHERE)
