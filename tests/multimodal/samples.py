"""Pictures and clips made on the spot: every frame of a clip tells its number by its grey value."""

from __future__ import annotations

import base64
import io
from fractions import Fraction
from typing import Any

import av
import numpy as np
import PIL.Image
from numpy.typing import NDArray

STEP = 4  # grey levels from frame to frame: more than any codec loses


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
    codec: str = "libx264", gop: int = 12, options: dict[str, str] | None = None,
) -> bytes:  # fmt: skip
    """A video file whose frame k is grey k * STEP."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container, options=options or {}) as output:
        stream = output.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.gop_size = gop
        stream.time_base = Fraction(1, fps)
        for index in range(num_frames):
            pixels = np.full((size[1], size[0], 3), index * STEP % 256, np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(stream.encode())
    return buffer.getvalue()


def frame_numbers(frames: NDArray[np.uint8]) -> list[int]:
    """The numbers of the frames of a `clip` (below 64)."""
    return [round(float(frame.mean()) / STEP) for frame in frames]
