"""Pictures and frames to patch rows, exactly as Qwen2VLImageProcessorPil does it (tests hold the two equal)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

PATCH = 14
MERGE = 2
TEMPORAL = 2
FACTOR = PATCH * MERGE
MIN_PIXELS = 84 * 84
MAX_PIXELS = 168 * 168
MEAN = np.asarray([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.asarray([0.26862954, 0.26130258, 0.27577711], np.float32)


@dataclass(frozen=True)
class Patches:
    """`rows` [t*h*w, 1176] float32 in merge-block order; `grid` is (t, h, w) in patches."""

    rows: NDArray[np.float32]
    grid: tuple[int, int, int]

    @property
    def num_tokens(self) -> int:
        t, h, w = self.grid
        return t * h * w // MERGE**2


def smart_resize(
    height: int, width: int, min_pixels: int = MIN_PIXELS, max_pixels: int = MAX_PIXELS
) -> tuple[int, int]:
    """The (height, width) a picture is resized to: multiples of 28, area within the limits, aspect about kept."""
    new_h, new_w = round(height / FACTOR) * FACTOR, round(width / FACTOR) * FACTOR
    if new_h * new_w > max_pixels:
        beta = math.sqrt(height * width / max_pixels)
        new_h = max(FACTOR, math.floor(height / beta / FACTOR) * FACTOR)
        new_w = max(FACTOR, math.floor(width / beta / FACTOR) * FACTOR)
    elif new_h * new_w < min_pixels:
        beta = math.sqrt(min_pixels / (height * width))
        new_h = math.ceil(height * beta / FACTOR) * FACTOR
        new_w = math.ceil(width * beta / FACTOR) * FACTOR
    return new_h, new_w


def _resized(image: Image.Image) -> NDArray[np.float32]:
    """[3, H, W] float32, normalised."""
    height, width = smart_resize(image.height, image.width)
    resized = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(resized, np.float32) * np.float32(1 / 255)
    return ((pixels - MEAN) / STD).transpose(2, 0, 1)


def frames_to_patches(frames: Sequence[Image.Image]) -> Patches:
    """A clip's sampled frames, all of one size; an odd last frame is repeated."""
    stack = np.stack([_resized(frame) for frame in frames])
    if len(stack) % TEMPORAL:
        stack = np.concatenate([stack, stack[-1:]])
    t, channels, height, width = len(stack) // TEMPORAL, stack.shape[1], stack.shape[2], stack.shape[3]
    gh, gw = height // FACTOR, width // FACTOR
    blocks = stack.reshape(t, TEMPORAL, channels, gh, MERGE, PATCH, gw, MERGE, PATCH)
    # (t, gh, gw, mh, mw, C, T, ph, pw)
    rows = blocks.transpose(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(t * gh * gw * MERGE**2, -1)
    return Patches(np.ascontiguousarray(rows), (t, gh * MERGE, gw * MERGE))


def image_to_patches(image: Image.Image) -> Patches:
    """One picture: the frame is shown twice to the temporal patch."""
    return frames_to_patches([image, image])


def sample_indices(total: int, source_fps: float, fps: float = 2.0, least: int = 4, most: int = 768) -> list[int]:
    """The frame numbers a server reads: `fps` a second, at least `least`, an even count, evenly spread."""
    wanted = min(max(total / source_fps * fps, least), min(most, total) // 2 * 2)
    count = max(2, int(wanted) // 2 * 2)
    return [round(float(k)) for k in np.linspace(0, total - 1, count)]
