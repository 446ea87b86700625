"""Picture files with whole pixels are read whatever is wrong around these; files that lack pixels are still refused."""

from __future__ import annotations

import io
import random
import struct
import time
import zlib
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

from tests.media.samples import LIMITS, encoded, noise, scaled_to
from trifocal.errors import RequestError
from trifocal.media.decode.mending import ended_jpegs, mended_png
from trifocal.media.media import FrameSample
from trifocal.media.reader import MediaReader

WHERE = "messages[0].content[1].image_url"
PIXELS = noise(40, 60)
PNG = encoded(PIL.Image.fromarray(PIXELS), "PNG")
AT = PNG.index(b"IDAT") - 4
Load = Callable[[bytes], NDArray[np.uint8]]


@pytest.fixture
def load(reader: MediaReader) -> Load:
    return lambda data: reader.load(reader.open("image", data, WHERE)).pixels


def chunk(name: bytes, body: bytes, wrong: int = 0) -> bytes:
    """`wrong` is added to the checksum."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body) + wrong & 0xFFFFFFFF)


# ------------------------------------------------------------------------------------------------- PNG

NOISE = random.Random(0).randbytes(3 << 20)  # what does not pack: the chunk itself is large, too
LARGE = {
    "a colour profile": chunk(b"iCCP", b"profile\0\0" + zlib.compress(NOISE)),
    "a text": chunk(b"tEXt", b"Comment\0" + b"word " * (1 << 20)),
    "a packed text": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"word " * (1 << 20))),
    "a text in UTF-8": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b"word " * (1 << 20))),
    "texts in all": chunk(b"tEXt", b"Comment\0" + bytes(1 << 20)) * 65,
}
BROKEN = {
    "nothing in a colour profile": chunk(b"iCCP", b""),
    "an unknown packing": chunk(b"zTXt", b"Comment\0\7xxx"),
    "an unknown packing of EXIF": chunk(b"zTXt", b"Raw profile type exif\0\7" + zlib.compress(b"xxx")),
    "no packing": chunk(b"zTXt", b"Raw profile type exif\0\0xxx"),
    **{f"the checksum of {name.decode()}": chunk(name, bytes(9), wrong=1)
       for name in (b"gAMA", b"pHYs", b"tIME", b"sRGB", b"bKGD", b"eXIf", b"tEXt", b"iCCP", b"prVt", b"acTL")},
}  # fmt: skip


@pytest.mark.parametrize("what", [*LARGE, *BROKEN])
def test_png_beside_the_pixels(what: str, load: Load) -> None:
    odd = {**LARGE, **BROKEN}[what]
    # Behind the header, or behind the pixels; what is in all more than PIL reads takes long enough once.
    for place in (33, len(PNG) - 12) if what != "texts in all" else (33,):
        np.testing.assert_array_equal(load(PNG[:place] + odd + PNG[place:]), PIXELS)


def test_png_with_a_broken_tail(load: Load) -> None:
    """All pixels have come, the end has not."""
    np.testing.assert_array_equal(load(PNG[:-12]), PIXELS)
    np.testing.assert_array_equal(load(PNG[:-3]), PIXELS)
    np.testing.assert_array_equal(load(PNG[:-12] + chunk(b"tEXt", b"a\0" + bytes(100))[:50]), PIXELS)


@pytest.mark.parametrize("data", [
    PNG[: len(PNG) // 2], PNG[: AT + 200],
    PNG.replace(b"IHDR\0\0\0\x3c", b"IHDR\0\0\0\x3d"),  # a wrong checksum of what is no metadata
    PNG[:AT] + PNG[-12:],
    PNG[:AT + 300] + bytes(99) + PNG[AT + 399:],
])  # fmt: skip
def test_png_that_lacks_pixels(data: bytes, load: Load) -> None:
    with pytest.raises(RequestError, match="broken or cut off|cannot be read|not an image") as caught:
        load(data)
    assert caught.value.message.startswith(WHERE)


def test_what_png_pixels_depend_on_stays() -> None:
    """Palette, transparency, interlacing: chunk by chunk what it was. A sound file is not even copied."""
    palette = PIL.Image.fromarray(PIXELS).convert("P")
    for data in (PNG, encoded(palette, "PNG", transparency=3), encoded(PIL.Image.new("I;16", (9, 9), 7), "PNG")):
        assert mended_png(data) is data
        assert mended_png(data[:33] + LARGE["a text"] + data[33:]) == data


def test_an_animated_png_is_a_picture_and_a_clip(reader: MediaReader, load: Load) -> None:
    frames = [noise(12, 20, seed=seed) for seed in range(3)]
    pictures = [PIL.Image.fromarray(frame) for frame in frames]
    data = encoded(pictures[0], "PNG", save_all=True, append_images=pictures[1:])
    odd = data[:33] + LARGE["a colour profile"] + data[33:-12] + LARGE["a packed text"] + data[-12:]
    np.testing.assert_array_equal(load(odd), frames[0])
    opened = reader.open("video", odd, WHERE, sampler=lambda *_: FrameSample(np.arange(3), 1.0))
    np.testing.assert_array_equal(reader.load(opened).pixels, frames)
    # A picture needs no frames; a clip whose frames are not to be trusted is refused.
    place = data.index(b"fcTL") + 4 + 26
    wrong = data[:place] + bytes(4) + data[place + 4 :]
    np.testing.assert_array_equal(load(wrong), frames[0])
    with pytest.raises(RequestError, match="not an image|checksum"):
        reader.open("video", wrong, WHERE, sampler=lambda *_: FrameSample(np.arange(3), 1.0))


# ------------------------------------------------------------------------------------------------- JPEG


def smooth(height: int, width: int) -> NDArray[np.uint8]:
    """A picture with edges and gradients, and a grey lower half: what is missing there would not be seen."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x * 255 // width, y * 255 // height, (x // 9 + y // 7) % 2 * 200], axis=-1).astype(np.uint8)
    pixels[height * 3 // 4 :] = 128
    return pixels


JPEGS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "4:4:4": {"subsampling": 0, "quality": 100},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_blocks": 3},
    "restarts, progressive": {"restart_marker_rows": 1, "progressive": True},
    "grey": {"mode": "L"},
    "cmyk": {"mode": "CMYK"},
    "optimised": {"optimize": True, "quality": 30},
}


def jpeg(kind: str, pixels: NDArray[np.uint8]) -> bytes:
    options = dict(JPEGS[kind])
    return encoded(PIL.Image.fromarray(pixels).convert(options.pop("mode", "RGB")), "JPEG", **options)


@pytest.mark.parametrize("kind", JPEGS)
def test_jpeg_without_its_end(kind: str, load: Load) -> None:
    for pixels in (smooth(70, 90), noise(33, 47), np.full((64, 64, 3), 128, np.uint8)):
        data = jpeg(kind, pixels)
        expected = load(data)
        # A half, and what cameras and servers pad with.
        for ending in (b"", b"\xff", bytes(512), b"\xff" * 9, b"\r\n"):
            np.testing.assert_array_equal(load(data[:-2] + ending), expected)


@pytest.mark.parametrize("kind", JPEGS)
def test_jpeg_that_is_cut_off(kind: str, reader: MediaReader) -> None:
    """Not one place is found where something is missing and the rest is shown, unless it shows all the same."""
    for pixels in (smooth(70, 90), noise(33, 47)):
        data = jpeg(kind, pixels)
        whole = reader.load(reader.open("image", data, WHERE)).pixels
        chance = random.Random(kind)
        scans = [place for place in range(len(data)) if data[place : place + 2] == b"\xff\xda"]
        restarts = [k for k in range(len(data) - 1) if data[k] == 0xFF and 0xD0 <= data[k + 1] <= 0xD7]
        ends = [*scans, *restarts[-5:], *range(len(data) - 12, len(data) - 2), len(data) // 2]
        for end in {*ends, *(chance.randrange(scans[0], len(data) - 2) for _ in range(20))}:
            try:
                pixels = reader.load(reader.open("image", data[:end], WHERE)).pixels
            except RequestError as error:
                assert "cut off" in error.message or "cannot be read" in error.message
            else:
                np.testing.assert_array_equal(pixels, whole, err_msg=f"{end} of {len(data)}")
        for end in (*scans, *restarts[:-1], len(data) // 2):
            assert not _is_read(reader, data[:end]), end


def _is_read(reader: MediaReader, data: bytes) -> bool:
    try:
        reader.load(reader.open("image", data, WHERE))
    except RequestError:
        return False
    return True


def test_a_progressive_jpeg_that_lacks_scans() -> None:
    """Each scan makes it finer: the end of one that is not the last looks like the end of the file."""
    data = jpeg("progressive", noise(33, 47))
    scans = [place for place in range(len(data)) if data[place : place + 2] == b"\xff\xda"]
    assert len(scans) > 5
    for end in scans[1:]:
        assert not list(ended_jpegs(data[:end]))
    assert len(list(ended_jpegs(data[:-2]))) == 3


@pytest.mark.parametrize("data", [
    b"", b"\xff\xd8", b"\xff\xd8\xff\xda", b"\xff\xd8\xff\xda\0\2", b"\xff\xd8\xff\xc0\0\1",
    b"\xff\xd8\xff\xc0\0\x0b\x08\0\1\0\1\1\1\x11\0\xff\xda\0\3\1",
])  # fmt: skip
def test_what_is_hardly_a_jpeg(data: bytes) -> None:
    assert not list(ended_jpegs(data))


def test_endings_cost_no_more_than_pictures() -> None:
    """A hostile file may ask for it: it has its time, and no more memory than the picture that it claims to be."""
    data = encoded(PIL.Image.effect_noise((1600, 1200), 50).convert("RGB"), "JPEG")[:-2]
    with closing(MediaReader(replace(LIMITS, decode_memory_gib=64 / 1024), 1)) as reader:
        before = time.monotonic()
        assert reader.load(reader.open("image", data, WHERE), planner=scaled_to(50, 60)).pixels.shape == (50, 60, 3)
        assert time.monotonic() - before < 30


def test_other_formats_lose_nothing_by_it(load: Load) -> None:
    for kind in ("BMP", "TIFF", "WEBP", "GIF"):
        data = encoded(PIL.Image.fromarray(PIXELS), kind)
        assert mended_png(data) is data
        with pytest.raises(RequestError):
            load(data[: len(data) // 2])
    assert PIL.Image.open(io.BytesIO(mended_png(PNG))).size == (60, 40)
