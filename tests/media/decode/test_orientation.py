"""Pictures and clips that lie on their side are turned once, whoever does it: every format, all eight orientations."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import PIL.Image
import pytest
import tifffile
from numpy.typing import NDArray

from tests.media.samples import encoded, noise
from trifocal.media.decoding import Opened
from trifocal.media.media import FrameSample
from trifocal.media.plan import ItemPlan
from trifocal.media.reader import MediaReader, as_it_is

WHERE = "messages[0].content[1].image_url"
ORIENTATIONS = range(1, 9)
PLAIN = np.zeros((24, 40, 3), np.uint8)  # large areas: no codec loses them
PLAIN[:12, :20], PLAIN[:12, 20:], PLAIN[12:, :20], PLAIN[12:, 20:] = (250, 0, 0), (0, 250, 0), (0, 0, 250), 250
# EXIF 2.3, "Orientation": on which side of the scene the first row and the first column of the file lie.
SIDES = {
    1: ("top", "left"), 2: ("top", "right"), 3: ("bottom", "right"), 4: ("bottom", "left"),
    5: ("left", "top"), 6: ("right", "top"), 7: ("right", "bottom"), 8: ("left", "bottom"),
}  # fmt: skip


def as_seen(stored: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """The scene that a file shows, pixel by pixel, by the words of the standard."""
    num_rows, num_columns = stored.shape[:2]
    sides = SIDES[orientation]
    is_upright = sides[0] in ("top", "bottom")
    seen = np.empty((num_rows, num_columns, 3) if is_upright else (num_columns, num_rows, 3), np.uint8)
    height, width = seen.shape[:2]
    for row in range(num_rows):
        for column in range(num_columns):
            place = dict.fromkeys(("x", "y"), 0)
            for side, number in zip(sides, (row, column), strict=True):
                if side in ("top", "bottom"):
                    place["y"] = number if side == "top" else height - 1 - number
                else:
                    place["x"] = number if side == "left" else width - 1 - number
            seen[place["y"], place["x"]] = stored[row, column]
    return seen


def exif(orientation: int) -> bytes:
    """A TIFF header with this tag alone."""
    return b"MM\0\x2a\0\0\0\x08\0\x01" + struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0) + bytes(4)


def jpeg(pixels: NDArray[np.uint8], orientation: int) -> bytes:
    data = encoded(PIL.Image.fromarray(pixels), "JPEG", quality=95, subsampling=0)
    body = b"Exif\0\0" + exif(orientation)
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[2:]


def mpo(pixels: NDArray[np.uint8], orientation: int) -> bytes:
    """What phones write that keep a second picture in the file."""
    picture = PIL.Image.fromarray(pixels)
    return encoded(picture, "MPO", save_all=True, append_images=[picture], quality=95, subsampling=0,
                   exif=b"Exif\0\0" + exif(orientation))  # fmt: skip


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(pixels: NDArray[np.uint8], orientation: int) -> bytes:
    data = encoded(PIL.Image.fromarray(pixels), "PNG")
    start = data.index(b"IDAT") - 4
    return data[:start] + chunk(b"eXIf", exif(orientation)) + data[start:]


def png_late(pixels: NDArray[np.uint8], orientation: int) -> bytes:
    """The standard allows EXIF behind the pixels."""
    data = encoded(PIL.Image.fromarray(pixels), "PNG")
    return data[:-12] + chunk(b"eXIf", exif(orientation)) + data[-12:]


def png_text(pixels: NDArray[np.uint8], orientation: int) -> bytes:
    """As ImageMagick wrote it for years: EXIF in hexadecimal, in a packed text."""
    data = encoded(PIL.Image.fromarray(pixels), "PNG")
    words = b"Exif\0\0" + exif(orientation)
    text = f"\nexif\n{len(words):8}\n{words.hex()}\n".encode()
    return data[:33] + chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text)) + data[33:]


def webp(pixels: NDArray[np.uint8], orientation: int) -> bytes:
    return encoded(PIL.Image.fromarray(pixels), "WEBP", lossless=True, exif=exif(orientation))


def tiff(compression: str | None) -> Callable[[NDArray[np.uint8], int], bytes]:
    """Not by PIL, which would write what it reads."""

    def write(pixels: NDArray[np.uint8], orientation: int) -> bytes:
        buffer = io.BytesIO()
        tifffile.imwrite(
            buffer, pixels, photometric="rgb", compression=compression, rowsperstrip=5,
            extratags=[(0x0112, "H", 1, orientation, True)],
        )  # fmt: skip
        return buffer.getvalue()

    return write


def grey_tiff(pixels: NDArray[np.uint8], orientation: int) -> bytes:
    """16 bits a pixel, which PIL reads by another way."""
    buffer = io.BytesIO()
    grey = pixels[..., 0].astype(np.uint16) * 257
    tifffile.imwrite(buffer, grey, photometric="minisblack", extratags=[(0x0112, "H", 1, orientation, True)])
    return buffer.getvalue()


def avif(pixels: NDArray[np.uint8], orientation: int) -> bytes:
    """PIL's writer turns the tag into AVIF's own marks, `irot` and `imir`."""
    data = encoded(PIL.Image.fromarray(pixels), "AVIF", quality=100, subsampling="4:4:4", exif=exif(orientation))
    assert (b"irot" in data or b"imir" in data) == (orientation != 1) and b"Exif" not in data
    return data


def heic(pixels: NDArray[np.uint8], orientation: int) -> bytes:
    pytest.importorskip("pillow_heif").register_heif_opener()
    picture = PIL.Image.fromarray(pixels)
    picture.info["exif"] = exif(orientation)
    data = encoded(picture, "HEIF", quality=-1, chroma=444)
    assert (b"irot" in data or b"imir" in data) == (orientation != 1)
    return data


WRITERS = {
    "JPEG": jpeg, "MPO": mpo, "PNG": png, "PNG, behind the pixels": png_late, "PNG, as text": png_text, "WebP": webp,
    "TIFF": tiff(None), "TIFF, packed": tiff("zlib"), "TIFF, 16 bits": grey_tiff, "AVIF": avif, "HEIC": heic,
}  # fmt: skip


@pytest.mark.parametrize("kind", WRITERS)
def test_pictures(reader: MediaReader, kind: str) -> None:
    for orientation in ORIENTATIONS:
        data = WRITERS[kind](PLAIN, orientation)
        expected = as_seen(PLAIN, orientation).astype(int)
        opened = reader.open("image", data, WHERE)
        if kind != "PNG, as text":  # which is found out too late for the header: a swap at most
            assert (opened.height, opened.width) == expected.shape[:2], orientation
        pixels = reader.load(opened).pixels.astype(int)
        if kind == "TIFF, 16 bits":
            expected = np.repeat(expected[..., :1], 3, axis=2)
        assert pixels.shape == expected.shape, orientation
        assert np.abs(pixels - expected).max() < 20, orientation


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WebP", "AVIF"])
def test_pictures_are_scaled_upright(reader: MediaReader, kind: str) -> None:
    """The size that a processor is asked for is that of the picture as it is seen, while it is decoded as well."""
    opened = reader.open("image", WRITERS[kind](PLAIN, 6), WHERE)
    assert opened.size == (1, 40, 24)
    asked = []

    def halved(opened: Opened) -> ItemPlan:
        asked.append(opened.size)
        return replace(as_it_is(opened), decoded=(opened.size[1] // 2, 10))

    small = reader.load(opened, planner=halved)
    assert small.pixels.shape == (20, 10, 3) and asked == [(1, 40, 24)] and small.plan == halved(opened)
    assert small.pixels[2, 2].argmax() == 2 and small.pixels[2, 8].argmax() == 0  # blue was below red


@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "PNG"])
def test_objects(reader: MediaReader, kind: str) -> None:
    """`LLM` may be given what PIL has opened, whether it has loaded it or not."""
    for orientation in ORIENTATIONS:
        data, expected = WRITERS[kind](PLAIN, orientation), as_seen(PLAIN, orientation)
        for is_loaded in (False, True):
            picture = PIL.Image.open(io.BytesIO(data))
            if is_loaded:
                picture.load()
            opened = reader.open("image", picture, WHERE)
            assert (opened.height, opened.width) == expected.shape[:2]
            pixels = reader.load(opened).pixels
            assert pixels.shape == expected.shape and np.abs(pixels.astype(int) - expected).max() < 20, orientation


@pytest.mark.parametrize("kind", ["TIFF", "TIFF, 16 bits", "JPEG"])
def test_objects_of_named_files(reader: MediaReader, tmp_path: Path, kind: str) -> None:
    """PIL maps plain pixels of a file that it knows by name into memory, by the size of the turned picture."""
    for orientation in ORIENTATIONS:
        file = tmp_path / str(orientation)
        file.write_bytes(WRITERS[kind](PLAIN, orientation))
        picture = PIL.Image.open(file)
        pixels = reader.load(reader.open("image", picture, WHERE)).pixels
        expected = reader.load(reader.open("image", file.read_bytes(), WHERE)).pixels
        np.testing.assert_array_equal(pixels, expected, str(orientation))
        assert picture.filename == str(file)  # the caller's own object


@pytest.mark.parametrize("kind", ["GIF", "BMP", "PPM", "JPEG2000"])
def test_formats_that_are_never_turned(reader: MediaReader, kind: str) -> None:
    pixels = reader.load(reader.open("image", encoded(PIL.Image.fromarray(PLAIN), kind), WHERE)).pixels
    assert pixels.shape == PLAIN.shape and np.abs(pixels.astype(int) - PLAIN).max() < 40


def test_exif_says_nothing_in_heic(reader: MediaReader) -> None:
    """It has marks of its own, and encoders copy the camera's tag into files whose pixels they have turned already."""
    data = heic(PLAIN, 1).replace(exif(1), exif(6))
    assert exif(6) in data
    assert reader.load(reader.open("image", data, WHERE)).pixels.shape == PLAIN.shape


# ------------------------------------------------------------------------------------------------- clips

# Where x and y of the file go, as the track header has it: (a, b), (c, d) with x' = a x + c y, y' = b x + d y.
MATRICES = {
    1: (1, 0, 0, 1), 2: (-1, 0, 0, 1), 3: (-1, 0, 0, -1), 4: (1, 0, 0, -1),
    5: (0, 1, 1, 0), 6: (0, 1, -1, 0), 7: (0, -1, -1, 0), 8: (0, -1, 1, 0),
}  # fmt: skip


def mp4() -> bytes:
    """`PLAIN` for four frames, twice as large: no codec loses it."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 80, 48, "yuv420p"
        for _ in range(4):
            frame = av.VideoFrame.from_ndarray(PLAIN.repeat(2, 0).repeat(2, 1), format="rgb24")
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return buffer.getvalue()


MP4 = mp4()


def held(orientation: int) -> bytes:
    """`MP4` as a phone writes it that is held like that."""
    data = bytearray(MP4)
    place = data.index(b"tkhd") + 44
    a, b, c, d = (number * 65536 for number in MATRICES[orientation])
    struct.pack_into(">9i", data, place, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    return bytes(data)


def mapped(stored: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """`stored` with each pixel where the matrix sends it."""
    a, b, c, d = MATRICES[orientation]
    height, width = stored.shape[:2]
    seen = np.empty((height, width, 3) if a else (width, height, 3), np.uint8)
    for y in range(height):
        for x in range(width):
            seen[(b * x + d * y) % seen.shape[0], (a * x + c * y) % seen.shape[1]] = stored[y, x]
    # A pixel goes from its corner: mirrored axes are one pixel off, all around.
    return np.roll(seen, (-1 if b + d < 0 else 0, -1 if a + c < 0 else 0), (0, 1))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_clips(reader: MediaReader, orientation: int) -> None:
    def last(data: bytes) -> NDArray[np.uint8]:
        opened = reader.open("video", data, WHERE, sampler=lambda *_: FrameSample(np.array([3]), 1.0))
        [frame] = reader.load(opened).pixels
        assert frame.shape[:2] == opened.size[1:]
        return frame

    np.testing.assert_array_equal(last(held(orientation)), mapped(last(MP4), orientation))
    assert mapped(PLAIN, orientation).tolist() == as_seen(PLAIN, orientation).tolist()


@pytest.mark.parametrize("kind", ["WEBP", "PNG"])
def test_animations(reader: MediaReader, kind: str) -> None:
    frames = [noise(12, 20, seed=seed) for seed in range(3)]
    options = {"lossless": True} if kind == "WEBP" else {}
    pictures = [PIL.Image.fromarray(frame) for frame in frames]
    for orientation in (2, 6, 7):
        tag = b"Exif\0\0" + exif(orientation)
        data = encoded(pictures[0], kind, save_all=True, append_images=pictures[1:], exif=tag, **options)
        opened = reader.open("video", data, WHERE, sampler=lambda *_: FrameSample(np.array([0, 2]), 1.0))
        expected = np.stack([as_seen(frames[k], orientation) for k in (0, 2)])
        assert opened.size[1:] == expected.shape[1:3]
        np.testing.assert_array_equal(reader.load(opened).pixels, expected)
