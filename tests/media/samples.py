"""Pictures and clips made on the spot: every frame of a clip shows its number, as black and white stripes."""

from __future__ import annotations

import base64
import io
import tempfile
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import PIL.Image
from numpy.typing import NDArray

from trifocal.media.decoding import Opened, Planner
from trifocal.media.limits import MediaLimits
from trifocal.media.plan import ItemPlan
from trifocal.media.reader import as_it_is

LIMITS = MediaLimits(
    max_image_pixels=128_000_000,
    max_request_pixels=4_000_000_000,
    max_video_frames=2048,
    image_decode_timeout=60,
    video_decode_timeout=120,
    decode_memory_gib=2,
)
_BITS = np.arange(8)


def scaled_to(height: int, width: int) -> Planner:
    """Plans for items that are scaled while they are decoded, and else stay as they are."""

    def plan(opened: Opened) -> ItemPlan:
        return replace(as_it_is(opened), decoded=(height, width))

    return plan


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> NDArray[np.uint8]:
    """Random uint8 [height, width, channels]."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def encoded(picture: PIL.Image.Image, kind: str, **options: Any) -> bytes:
    """A picture file."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def data_url(data: bytes, mime: str = "image/png") -> str:
    """A base64 data: URL."""
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def clip(
    num_frames: int = 30, fps: int = 10, size: tuple[int, int] = (64, 48), container: str = "mp4",
    codec: str = "libx264", gop: int = 12, options: dict[str, str] | None = None, pixels: str = "yuv420p",
) -> bytes:  # fmt: skip
    """A video file whose frame k is `numbered(k)`."""
    # A file, not a buffer: "faststart" reads back what it wrote.
    with (
        tempfile.NamedTemporaryFile() as file,
        av.open(file.name, "w", format=container, options=options or {}) as output,
    ):
        stream = output.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = *size, pixels
        stream.gop_size = gop
        stream.time_base = Fraction(1, fps)
        for index in range(num_frames):
            frame = av.VideoFrame.from_ndarray(numbered(index, size[1], size[0]), format="rgb24")
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
        output.close()
        return Path(file.name).read_bytes()


def numbered(number: int, height: int, width: int) -> NDArray[np.uint8]:
    """A frame of eight stripes, a bit each (width a multiple of 8): no codec loses them."""
    stripes = ((number >> _BITS & 1) * 255).astype(np.uint8).repeat(width // 8)
    return np.broadcast_to(stripes[None, :, None], (height, width, 3)).copy()


def frame_numbers(frames: NDArray[np.uint8]) -> list[int]:
    """The numbers that `numbered` frames show (below 256)."""
    stripes = frames.reshape(*frames.shape[:2], 8, -1).mean(axis=(1, 3)) > 127
    return [int((bits << _BITS).sum()) for bits in stripes]
