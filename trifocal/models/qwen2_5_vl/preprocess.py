"""Pictures and frames to patch rows, and the three rows of M-RoPE positions: plain numpy and PIL."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from trifocal.models.qwen2_5_vl.options import PixelLimits
from trifocal.types import RequestError

MAX_ASPECT_RATIO = 200


def smart_resize(height: int, width: int, factor: int, limits: PixelLimits) -> tuple[int, int]:
    """The (height, width) a picture is resized to: multiples of `factor`, area within `limits`, aspect about kept.

    Source: transformers `image_processing_pil_qwen2_vl.smart_resize`, rounding half to even included.
    """
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise RequestError(
            f"the aspect ratio of {width}x{height} is above {MAX_ASPECT_RATIO}, the most this model takes",
            param="messages",
        )
    new_height, new_width = round(height / factor) * factor, round(width / factor) * factor
    if new_height * new_width > limits.max_pixels:
        beta = math.sqrt(height * width / limits.max_pixels)
        new_height = max(factor, math.floor(height / beta / factor) * factor)
        new_width = max(factor, math.floor(width / beta / factor) * factor)
    elif new_height * new_width < limits.min_pixels:
        beta = math.sqrt(limits.min_pixels / (height * width))
        new_height = math.ceil(height * beta / factor) * factor
        new_width = math.ceil(width * beta / factor) * factor
    return new_height, new_width


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


@dataclass(frozen=True, slots=True)
class TokenGrid:
    """Where the tokens of a media item begin in a prompt, and how they lie: `t` grids of `h` x `w`, in tokens."""

    offset: int
    t: int
    h: int
    w: int
    second_per_grid: float


def mrope_positions(
    num_tokens: int, grids: Sequence[TokenGrid], tokens_per_second: float
) -> tuple[NDArray[np.int64], int]:
    """M-RoPE positions int64 [3, num_tokens] and the delta that tokens after the prompt add to their index.

    Text goes on from the greatest position so far, on all rows alike. This is the rule of the released model
    (transformers 4.49, vLLM), times rounded down in float32 as there; later transformers releases differ for clips.
    """
    positions = np.empty((3, num_tokens), np.int64)
    index = following = 0
    for grid in grids:
        num_text = grid.offset - index
        positions[:, index : grid.offset] = np.arange(following, following + num_text)
        following += num_text
        end = grid.offset + grid.t * grid.h * grid.w
        seconds = np.arange(grid.t, dtype=np.float32) * np.float32(grid.second_per_grid)
        block = np.empty((3, grid.t, grid.h, grid.w), np.int64)
        block[0] = np.floor(seconds * np.float32(tokens_per_second)).astype(np.int64)[:, None, None]
        block[1] = np.arange(grid.h)[:, None]
        block[2] = np.arange(grid.w)
        positions[:, grid.offset : end] = block.reshape(3, -1) + following
        following += int(block.max()) + 1
        index = end
    positions[:, index:] = np.arange(following, following + num_tokens - index)
    return positions, following - index
