"""Pictures and frames to rows of patches, the layout that vision towers take: plain numpy and PIL."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import PIL.Image
from numpy.typing import NDArray


def resize(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """RGB [height, width, 3] at `size` (height, width): PIL's antialiased bicubic, the reproducible one."""
    if pixels.shape[:2] == size:
        return pixels
    return np.asarray(PIL.Image.fromarray(pixels).resize((size[1], size[0]), PIL.Image.Resampling.BICUBIC))


@dataclass(frozen=True, slots=True)
class PatchLayout:
    """Sizes of a patch: `patch` pixels square, `temporal` frames deep; `merge` x `merge` of them make one token."""

    patch: int = 14
    merge: int = 2
    temporal: int = 2

    @property
    def factor(self) -> int:
        """Pixels along the side of one token."""
        return self.patch * self.merge

    def grid(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Patches along time, height and width."""
        return -(-num_frames // self.temporal), height // self.patch, width // self.patch

    def patchify(self, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """[num_frames, height, width, 3] -> [t*h*w, 3*temporal*patch*patch]; a last frame alone is repeated.

        Rows in the order (t, token row, token column, row and column in the token), columns (channel, frame, y, x).
        A line of a patch is copied as one element of `patch` bytes: five times faster than byte by byte.
        """
        num_frames, height, width, channels = frames.shape
        t, h, w = self.grid(num_frames, height, width)
        m, p = self.merge, self.patch
        planes = np.ascontiguousarray(frames.transpose(0, 3, 1, 2)).view(f"V{p}")
        planes = planes.reshape(num_frames, channels, h // m, m, p, w // m, m)
        lines = np.empty((t, h // m, w // m, m, m, channels, self.temporal, p), f"V{p}")
        for depth in range(self.temporal):
            chosen = np.minimum(np.arange(t) * self.temporal + depth, num_frames - 1)
            lines[..., depth, :] = planes[chosen].transpose(0, 2, 5, 3, 6, 1, 4)
        return lines.view(np.uint8).reshape(t * h * w, -1)
