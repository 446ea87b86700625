"""The size a picture is resized to, and the three rows of M-RoPE positions: plain numpy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trifocal.errors import RequestError
from trifocal.models.qwen2_5_vl.options import PixelLimits

MAX_ASPECT_RATIO = 200


def smart_resize(height: int, width: int, factor: int, limits: PixelLimits) -> tuple[int, int]:
    """The (height, width) a picture is resized to: multiples of `factor`, area within `limits`, aspect about kept.

    Source: transformers `image_processing_pil_qwen2_vl.smart_resize`, rounding half to even included.
    """
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise RequestError(
            f"the aspect ratio of {width}x{height} is above {MAX_ASPECT_RATIO}, which is this model's limit",
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
