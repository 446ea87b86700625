"""An animated picture (GIF, WebP, PNG) as a clip."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from trifocal.errors import RequestError
from trifocal.media.decode.image import check_size, open_bytes, orientation_of, refusal, to_rgb

MAX_ANIMATION_PIXELS = 500_000_000  # of all frames: each must be decoded, some seconds in all
_MAX_FPS = 1000.0
_SILENT_MS = 100.0  # as browsers show a frame that does not say for how long


def is_animation(data: bytes) -> bool:
    """Whether the bytes begin like a picture that may be animated."""
    return data[:4] == b"GIF8" or (data[:4] == b"RIFF" and data[8:12] == b"WEBP") or data[:4] == b"\x89PNG"


class Animation:
    """The frames of an animated picture: `num_frames`, `fps`, `height`, `width` as displayed. Raises `RequestError`."""

    def __init__(self, data: bytes, where: str, max_pixels: int) -> None:
        self._picture = open_bytes(data, where, max_pixels, is_clip=True)
        self.height, self.width = self._picture.height, self._picture.width
        check_size(self.height, self.width, where, max_pixels)
        try:
            self.num_frames = int(getattr(self._picture, "n_frames", 1))
            if self.num_frames * self.height * self.width > MAX_ANIMATION_PIXELS:
                message = f"the animation's {self.num_frames} frames of {self.width}x{self.height} are too many"
                raise refusal(where, message)
            self._picture.load()
            self._orientation = orientation_of(self._picture)  # of all frames
            milliseconds = sum(map(self._duration, range(self.num_frames)))
        except (RequestError, MemoryError):
            raise
        except Exception as error:  # decoders of broken files fail in every way there is
            raise refusal(where, f"the animation is broken or cut off: {error}") from None
        if self._orientation >= 5:
            self.height, self.width = self.width, self.height
        self.fps = min(self.num_frames / milliseconds * 1000, _MAX_FPS)

    def pictures(self, indices: NDArray[np.int64]) -> Iterator[PIL.Image.Image]:
        """RGB pictures at rising `indices`."""
        self._picture.seek(0)
        for index in indices:
            self._picture.seek(int(index))
            yield to_rgb(self._picture, self._orientation)

    def _duration(self, index: int) -> float:
        self._picture.seek(index)
        self._picture.load()  # WebP tells a frame's duration only then
        return float(self._picture.info.get("duration", 0) or _SILENT_MS)
