# ruff: noqa: E501  (lists of inputs read better with one idea a line)
"""Hostile pictures: broken at random in every format, and bombs of every kind known."""

from __future__ import annotations

import importlib
import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache, partial
from typing import Any

import numpy as np
import PIL.Image

from tools.hostile.case import Call, Case, ask_about_bytes, ruined

FORMATS = (
    "PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "ICO", "JPEG2000", "AVIF", "HEIF", "TGA", "PCX", "ICNS", "DDS",
)  # fmt: skip
MUTATIONS = 9


def cases() -> Iterator[Case]:
    """All of them."""
    for kind in FORMATS:
        for number in range(MUTATIONS):
            yield Case(f"picture/{kind}/{number}", partial(_mutated, kind))
    for name, make in BOMBS.items():
        yield Case(f"bomb/{name}", partial(_bomb, make), is_slow=name in SLOW)


def _mutated(kind: str, chance: random.Random) -> Call:
    data = ruined(sample(kind), chance)
    return ask_about_bytes(data, chance.choice(["image_url", "image_url", "video_url"]))


def _bomb(make: Callable[[], bytes], chance: random.Random) -> Call:
    return ask_about_bytes(make())


@cache
def sample(kind: str) -> bytes:
    """A good picture."""
    pixels = np.random.default_rng(7).integers(0, 256, (48, 64, 3), np.uint8)
    return encoded(PIL.Image.fromarray(pixels), kind)


def encoded(picture: PIL.Image.Image, kind: str, **options: Any) -> bytes:
    """A picture file; PNG where this build of PIL cannot write the format, or the extra for HEIC is absent."""
    buffer = io.BytesIO()
    PIL.Image.init()
    if kind == "HEIF":
        with suppress(ImportError):
            importlib.import_module("pillow_heif").register_heif_opener()
    picture.save(buffer, kind if kind in PIL.Image.SAVE else "PNG", **options)
    return buffer.getvalue()


def png(*chunks: tuple[bytes, bytes], size: tuple[int, int] = (8, 8), pixels: bytes | None = None) -> bytes:
    """A PNG (RGB) with more chunks before its pixels."""
    width, height = size
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes((3 * width + 1) * height)) if pixels is None else pixels
    parts = [(b"IHDR", header), *chunks, (b"IDAT", data), (b"IEND", b"")]
    packed = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def many_scans(end: bytes = b"\xff\xd9") -> bytes:
    """A progressive JPEG whose last scan comes thousands of times: minutes of decoding."""
    data = encoded(PIL.Image.new("L", (3000, 3000), 90), "JPEG", progressive=True)
    scan = data.rindex(b"\xff\xda")
    return data[:scan] + data[scan:-2] * 5000 + end


@cache
def gif_flood(frames: int, side: int) -> bytes:
    """An animation of more pixels than anybody should decode: one frame, many times."""
    data = encoded(PIL.Image.new("P", (side, side)), "GIF")
    start = 13 + 3 * 2 ** ((data[10] & 7) + 1)  # behind the header and the palette
    return data[:start] + data[start:-1] * frames + b";"


@cache
def zeros(num_bytes: int) -> bytes:
    """So many zeros, deflated."""
    packer, block = zlib.compressobj(1), bytes(1 << 20)
    parts = [packer.compress(block) for _ in range(num_bytes >> 20)]
    return b"".join([*parts, packer.compress(bytes(num_bytes & (1 << 20) - 1)), packer.flush()])


def exif_bomb() -> bytes:
    """Thousands of entries that all name the same megabyte."""
    entries = b"".join(struct.pack("<HHII", 0x8000 + k, 7, 1 << 20, 8) for k in range(5000))
    return png((b"eXIf", b"II*\0\x08\0\0\0" + struct.pack("<H", 5000) + entries + bytes(4 + (1 << 20))))


def icon_of(inner: bytes) -> bytes:
    """An icon that says 16x16 and holds another picture."""
    head = struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inner), 22)
    return head + inner


def tiff(width: int, height: int, *, tile: int | None = None, pixels: bytes = b"") -> bytes:
    """A deflated grey TIFF; with `tile` in tiles of that side, however small the picture is."""
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1), (277, 3, 1, 1)]
    if tile:
        tags += [(322, 4, 1, tile), (323, 4, 1, tile), (324, 4, 1, 8), (325, 4, 1, len(pixels))]
    else:
        tags += [(273, 4, 1, 8), (278, 4, 1, height), (279, 4, 1, len(pixels))]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    offset = 8 + len(pixels)
    return struct.pack("<2sHI", b"II", 42, offset) + pixels + struct.pack("<H", len(tags)) + entries + bytes(4)


BOMBS: dict[str, Callable[[], bytes]] = {
    "png of 400 megapixels": lambda: png(size=(20_000, 20_000), pixels=b""),
    "png of 2 gigapixels a side": lambda: png(size=(2**31 - 1, 2**31 - 1), pixels=b""),
    "png of no pixels": lambda: png(size=(0, 0), pixels=b""),
    "png of 100 megapixels": lambda: png(size=(10_000, 10_000), pixels=zeros(30_001 * 10_000)),
    "png that unpacks to more than it says": lambda: png(pixels=zeros(64 << 20)),
    "png with a text bomb": lambda: png((b"zTXt", b"Comment\0\0" + zeros(64 << 20))),
    "png with an international text bomb": lambda: png((b"iTXt", b"Comment\0\1\0\0\0" + zeros(64 << 20))),
    "png with a profile bomb": lambda: png((b"iCCP", b"profile\0\0" + zeros(64 << 20))),
    "png with many text bombs": lambda: png(*[(b"zTXt", b"k\0\0" + zlib.compress(bytes(1 << 20)))] * 200),
    "png with 100000 chunks": lambda: png(*[(b"tEXt", b"k\0v")] * 100_000),
    "png with many packed orientations": lambda: png(*[(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(bytes(1 << 20)))] * 200),
    "png with an orientation bomb": lambda: png((b"zTXt", b"Raw profile type exif\0\0" + zeros(64 << 20))),
    "png with an exif bomb": exif_bomb,
    "png with a wrong checksum": lambda: png().replace(b"IDAT", b"IDAt"),
    "png animation with a billion frames": lambda: png((b"acTL", struct.pack(">II", 2**30, 0))),
    "gif flood": lambda: gif_flood(60, 4000),
    "gif of 65535 pixels a side": lambda: b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x08\1\0\0;",
    "gif whose frame is larger than its screen": lambda: (
        b"GIF89a\1\0\1\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\xff\xff\xff\xff\0\2\2D\1\0;"
    ),
    "gif flood of small frames": lambda: gif_flood(20_000, 16),
    "jpeg of 65535 pixels a side": lambda: b"\xff\xd8\xff\xc0\0\x0b\x08\xff\xff\xff\xff\1\1\x11\0\xff\xd9",
    "jpeg with many scans": many_scans,
    "jpeg with many scans and no end": lambda: many_scans(b""),
    "jpeg with many scans of nothing": lambda: sample("JPEG")[:-2] + b"\xff\xda\0\x08\1\1\0\0\x3f\0" * 500_000,
    "jpeg of stuffed bytes": lambda: sample("JPEG")[:-2] + b"\xff\0" * 2_000_000,
    "jpeg of restarts": lambda: sample("JPEG")[:-2] + b"\xff\xd0" * 2_000_000,
    "jpeg with comments only": lambda: b"\xff\xd8" + b"\xff\xfe\xff\xff" + b"x" * 65533 + b"\xff\xd9",
    "icon that holds 400 megapixels": lambda: icon_of(png(size=(20_000, 20_000), pixels=b"")),
    "icon that holds itself": lambda: icon_of(icon_of(icon_of(png()))),
    "icon with 65535 entries": lambda: struct.pack("<HHH", 0, 1, 65535) + bytes(65535 * 16),
    "tiff of 4 gigapixels": lambda: tiff(65535, 65535, pixels=zlib.compress(bytes(100))),
    "tiff with a tile of 900 megapixels": lambda: tiff(16, 16, tile=30_000, pixels=zeros(900 * 10**6)),
    "tiff that points at itself": lambda: tiff(16, 16)[:-4] + struct.pack("<I", 8),
    "ppm of a line": lambda: b"P6 100000000 1 255\n" + bytes(100),
    "ppm in words": lambda: b"P3 30000 30000 255\n" + b"255 " * 100,
    "ppm of long numbers": lambda: b"P6 " + b"9" * 10_000 + b" 1 255\n",
    "bmp of negative height": lambda: b"BM" + struct.pack("<IHHIIiiHHIIiiII", 58, 0, 0, 54, 40, 1, -(2**31), 1, 24, 0, 4, 1, 1, 0, 0) + bytes(4),
    "heic of nothing": lambda: b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "heic of brands": lambda: b"\xff\xff\xff\xffftypheic" + b"heic" * 500_000,
    "heic with a box of 2 exabytes": lambda: b"\0\0\0\x18ftypheic\0\0\0\0mif1heic\0\0\0\1meta\x20" + bytes(99),
    "svg": lambda: b"<?xml version='1.0'?><!DOCTYPE x [<!ENTITY a SYSTEM 'file:///etc/passwd'>]><svg>&a;</svg>",
    "postscript": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n",
    "pdf": lambda: b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>\n",
    "psd": lambda: b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 30_000, 30_000, 8, 3) + bytes(80),
    "html": lambda: b"<html><img src=http://127.0.0.1/></html>",
    "png and html": lambda: png() + b"<script>alert(1)</script>",
    "a zip": lambda: b"PK\x03\x04" + bytes(200),
    "nothing but zeros": lambda: bytes(1 << 20),
    "one byte": lambda: b"\x89",
    "strip of one row": lambda: png(size=(60_000, 1), pixels=zlib.compress(bytes(180_001))),
    "strip of one column": lambda: png(size=(1, 60_000), pixels=zlib.compress(bytes(240_000))),
}  # fmt: skip
SLOW = {
    "jpeg with many scans",
    "jpeg with many scans and no end",
    "tiff with a tile of 900 megapixels",
    "png of 100 megapixels",
    "gif flood",
}
