"""Clips: what is known of one before its pixels (`OpenedVideo`), and those that come as frames in Python objects."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from trifocal.multimodal.image import TargetSize, as_uint8, check_size, refusal, scaled, to_rgb
from trifocal.multimodal.media import Video
from trifocal.multimodal.processor import FrameSample
from trifocal.types import Modality

Sampler = Callable[[int, float], FrameSample]
"""(frames, frames per second of a clip) -> the frames to use."""


@dataclass(frozen=True, slots=True)
class EncodedVideo:
    """A file's bytes while they are to be decoded elsewhere; `index` belongs to whoever decodes, `name` to a cache."""

    data: bytes
    index: bytes
    name: bytes


@dataclass(frozen=True, slots=True)
class OpenedVideo:
    """A clip known but for its pixels: `num_frames` at `fps`, `sample` the chosen ones; size as displayed."""

    source: NDArray[np.uint8] | EncodedVideo
    num_frames: int
    fps: float
    height: int
    width: int
    sample: FrameSample
    where: str
    modality: Modality = "video"

    @property
    def size(self) -> tuple[int, int, int]:
        """(chosen frames, height, width)."""
        return len(self.sample.indices), self.height, self.width


def open_frames(source: Any, sampler: Sampler, where: str, max_pixels: int, *, frames_fps: float = 2.0) -> OpenedVideo:
    """Open frames (array [frames, height, width, 3], list of pictures), or (frames, metadata). Raises `RequestError`.

    Frames are taken as they are, all of them, at `metadata["fps"]` a second, `frames_fps` where that is not said.
    vLLM's metadata is understood: with `total_num_frames` and `frames_indices` the frames are a sample of a clip at
    `fps`; `do_sample_frames: true` has them sampled here. `max_pixels` are those of one frame.
    """
    metadata: Mapping[str, Any] = {}
    if isinstance(source, tuple) and len(source) == 2 and isinstance(source[1], Mapping):
        source, metadata = source
    frames = _as_frames(source, where)
    count, height, width = frames.shape[:3]
    check_size(height, width, where, max_pixels)
    fps = _number(metadata.get("fps"), where)
    if metadata.get("do_sample_frames") and fps is not None:
        sample = sampler(count, fps)
    else:
        total = _number(metadata.get("total_num_frames"), where)
        if fps is not None and total is not None and metadata.get("frames_indices") is not None:
            fps *= count / total
        sample = FrameSample(np.arange(count), fps if fps is not None else frames_fps)
    return OpenedVideo(frames, count, fps or sample.fps, height, width, sample, where)


def load_frames(opened: OpenedVideo, target: TargetSize | None = None) -> Video:
    """The chosen frames, scaled one by one."""
    assert isinstance(opened.source, np.ndarray)
    indices = opened.sample.indices
    pictures = (PIL.Image.fromarray(opened.source[index]) for index in indices)
    return Video(np.stack([np.asarray(scaled(p, len(indices), target)) for p in pictures]), opened.sample.fps)


def _as_frames(source: Any, where: str) -> NDArray[np.uint8]:
    if isinstance(source, list | tuple) and source:
        pictures = [_as_frame(item, where) for item in source]
        shapes = {item.shape for item in pictures}
        if len(shapes) > 1:
            raise refusal(where, f"the frames of a video must be of one size, got {sorted(shapes)}")
        source = np.stack(pictures)
    frames = as_uint8(source, where)
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.shape[0] < 1:
        raise refusal(where, f"a video array must be [frames, height, width, 3], got {list(frames.shape)}")
    return frames


def _as_frame(item: Any, where: str) -> NDArray[np.uint8]:
    return np.asarray(to_rgb(item)) if isinstance(item, PIL.Image.Image) else as_uint8(item, where)


def _number(value: Any, where: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise refusal(where, f"fps and total_num_frames of a video's metadata must be positive numbers, got {value!r}")
    return float(value)
