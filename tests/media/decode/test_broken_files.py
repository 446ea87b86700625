"""Files broken at random: each is either read or refused with `RequestError`, and nothing else ever comes out."""

from __future__ import annotations

import random

import numpy as np
import PIL.Image
import pytest

from tests.media.samples import clip, encoded, noise, numbered
from trifocal.errors import RequestError
from trifocal.media.media import FrameSample
from trifocal.media.reader import MediaReader

NUM_MUTATIONS = 20
PICTURE = PIL.Image.fromarray(noise(60, 80))
FRAMES = [PIL.Image.fromarray(numbered(k, 10, 24)) for k in range(6)]


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Cut off, or with some bytes changed (anywhere, or in the header), or with a stretch replaced."""
    broken = bytearray(data)
    kind = chance.randrange(4)
    if kind == 0:
        return bytes(broken[: chance.randrange(len(broken))])
    if kind == 3:
        start = chance.randrange(len(broken))
        broken[start : start + chance.randrange(50)] = chance.randbytes(chance.randrange(50))
        return bytes(broken)
    for _ in range(chance.randrange(1, 12)):
        broken[chance.randrange(len(broken) if kind == 1 else min(200, len(broken)))] = chance.randrange(256)
    return bytes(broken)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "ICO"])
def test_pictures(reader: MediaReader, kind: str) -> None:
    data, chance = encoded(PICTURE, kind), random.Random(kind)
    for _ in range(NUM_MUTATIONS):
        try:
            pixels = reader.load(reader.open("image", mutated(data, chance), "here")).pixels
            assert pixels.ndim == 3 and pixels.dtype == np.uint8
        except RequestError as error:
            assert error.message.startswith("here: ")


def sample(num_frames: int, fps: float) -> FrameSample:
    """Six frames or fewer."""
    return FrameSample(np.linspace(0, num_frames - 1, min(num_frames, 6)).round().astype(np.int64), fps)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "mp4", "matroska", "webm", "avi", "mpegts"])
def test_clips(reader: MediaReader, kind: str) -> None:
    if kind.isupper():
        data = encoded(FRAMES[0], kind, save_all=True, append_images=FRAMES[1:])
    else:
        data = clip(20, container=kind, codec={"webm": "libvpx", "avi": "mpeg4"}.get(kind, "libx264"))
    chance = random.Random(kind)
    for _ in range(NUM_MUTATIONS):
        try:
            frames = reader.load(reader.open("video", mutated(data, chance), "here", sampler=sample)).pixels
            assert frames.ndim == 4 and len(frames) >= 1
        except RequestError as error:
            assert error.message.startswith("here: ")
