"""Clips: what is known of one before its pixels (`OpenedVideo`), and those that come as frames."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trifocal.media.arrays import frames_of, is_array, pil_picture
from trifocal.media.decode.image import OpenedImage, refusal, scaled, to_rgb
from trifocal.media.decode.jobs import VideoHeader
from trifocal.media.given import is_with_metadata, wrong_object
from trifocal.media.limits import MediaLimits
from trifocal.media.media import FrameSample, Video
from trifocal.media.plan import ItemPlan
from trifocal.types import Modality

Sampler = Callable[[int, float], FrameSample]
"""(frames, frames per second of a clip) -> the frames to use."""


def whole_clip(num_frames: int, fps: float) -> FrameSample:
    """A `Sampler` that takes all frames."""
    return FrameSample(np.arange(num_frames), fps)


DEFAULT_FRAMES_FPS = 2.0  # of frames whose rate nobody says, as in vLLM and transformers
_METADATA = ("fps", "duration", "do_sample_frames", "total_num_frames", "frames_indices")
_LABELS = ("video_backend", "width", "height")  # of vLLM and transformers; what they say is known or changes nothing
_LEAST_FPS, _MOST_FPS = 1e-6, 1e6  # eleven days a frame: positions that count the time between stay whole numbers
_MAX_SHOWN = 40


@dataclass(frozen=True, slots=True)
class FrameFacts:
    """What a request says of a clip that comes as frames.

    `metadata` as in vLLM: `fps` or `duration`, `do_sample_frames`, `total_num_frames`, `frames_indices`; the clip's own
    win over it.
    `num_frames` are the most to use, `fps` their rate where no metadata says it.
    """

    metadata: Mapping[str, Any] = field(default_factory=dict)
    num_frames: int | None = None
    fps: float = DEFAULT_FRAMES_FPS


@dataclass(frozen=True, slots=True)
class OpenedVideo:
    """A clip known but for its pixels; of its frames `sample` are the chosen ones.

    `source`: a file's bytes, which a cache knows by `name`; all frames as uint8 [frames, height, width, channels]; or
    the chosen frames as pictures. `is_fixed`: its metadata say that all frames are to be used.
    """

    source: NDArray[np.uint8] | bytes | Sequence[OpenedImage]
    header: VideoHeader
    sample: FrameSample
    where: str
    name: bytes = b""
    is_fixed: bool = False
    modality: Modality = "video"

    @property
    def size(self) -> tuple[int, int, int]:
        """(chosen frames, height, width)."""
        return len(self.sample.indices), self.header.height, self.header.width


def open_frames(
    source: Any,
    sampler: Sampler,
    where: str,
    limits: MediaLimits,
    open_image: Callable[[Any, str], OpenedImage],
    facts: FrameFacts | None = None,
) -> OpenedVideo:
    """Open an array (`arrays.frames_of`), a list of whatever `open_image` takes, or (frames, metadata).

    All frames are used as they are, unless `do_sample_frames` is true, or there are more than `num_frames` and
    `do_sample_frames` is not false: then `sampler` chooses. With `total_num_frames` and `frames_indices` the frames are
    a sample of a clip at `fps`. Raises `RequestError`.
    """
    facts = facts or FrameFacts()
    metadata = facts.metadata
    if is_with_metadata(source):
        _check_names(source[1], where)
        source, metadata = source[0], {**metadata, **source[1]}
    if isinstance(source, bytes):
        raise refusal(where, "metadata may be given with frames only; a video file has its own")
    if is_array(source):
        source = frames_of(source, where, limits.max_image_pixels)
    elif not isinstance(source, list | tuple) or not source:
        raise wrong_object(source, "video", where)
    count = len(source)
    fps = _rate(metadata, count, where)
    _check_rate(fps or facts.fps, where)
    sample = _sample(count, fps, sampler, metadata, facts, where)
    limits.check_frames(len(sample.indices), where)
    is_fixed = _is_fixed(metadata)
    if isinstance(source, np.ndarray):
        header = VideoHeader(count, fps or facts.fps, source.shape[1], source.shape[2])
        return OpenedVideo(source, header, sample, where, is_fixed=is_fixed)
    chosen = [open_image(source[index], f"{where}[{index}]") for index in sample.indices]
    sizes = sorted({picture.size[1:] for picture in chosen})
    if len(sizes) > 1:
        shown = ", ".join(f"{width}x{height}" for height, width in sizes[:4])
        raise refusal(where, f"the frames of a video must be of one size, got {shown}")
    header = VideoHeader(count, fps or facts.fps, *sizes[0])
    return OpenedVideo(chosen, header, sample, where, is_fixed=is_fixed)


def num_frames_to_choose_from(source: Any, facts: FrameFacts) -> int:
    """Frames of a clip that is sent as frames; 0 if its metadata say that all of them are to be used."""
    metadata = facts.metadata
    if is_with_metadata(source):
        source, metadata = source[0], {**metadata, **source[1]}
    is_list = is_array(source) or isinstance(source, list | tuple)
    return len(source) if is_list and not _is_fixed(metadata) else 0


def load_frames(opened: OpenedVideo, plan: ItemPlan) -> Video:
    """The chosen frames of an array, scaled one by one."""
    assert isinstance(opened.source, np.ndarray)
    pictures = (to_rgb(pil_picture(opened.source[index])) for index in plan.frames)
    return Video(np.stack([np.asarray(scaled(each, plan.decoded)) for each in pictures]), plan.fps, plan)


def _check_names(metadata: Mapping[Any, Any], where: str) -> None:
    for name in metadata:
        if name not in (*_METADATA, *_LABELS):
            known = ", ".join((*_METADATA, *_LABELS))
            raise refusal(where, f"the video's metadata have an unknown key {str(name)[:_MAX_SHOWN]!r}; known: {known}")


def _is_fixed(metadata: Mapping[str, Any]) -> bool:
    return metadata.get("do_sample_frames") is not None and not metadata["do_sample_frames"]


def _rate(metadata: Mapping[str, Any], count: int, where: str) -> float | None:
    """Frames a second of the frames that came; None where the metadata do not say."""
    fps, total, duration = (_number(metadata, name, where) for name in ("fps", "total_num_frames", "duration"))
    indices = metadata.get("frames_indices")
    if indices is not None and np.size(indices) != count:
        raise refusal(where, f"frames_indices has {np.size(indices)} numbers, but there are {count} frames")
    if fps is None and duration is not None:
        return count / duration
    return fps * count / total if fps is not None and total is not None and indices is not None else fps


def _check_rate(fps: float, where: str) -> None:
    if not _LEAST_FPS <= fps <= _MOST_FPS:
        raise refusal(where, f"the video's fps must be between {_LEAST_FPS:g} and {_MOST_FPS:g}, got {fps:g}")


def _sample(
    count: int, fps: float | None, sampler: Sampler, metadata: Mapping[str, Any], facts: FrameFacts, where: str
) -> FrameSample:
    is_asked = metadata.get("do_sample_frames")
    if is_asked is not None and not isinstance(is_asked, bool | np.bool_):
        raise refusal(where, f"do_sample_frames must be true or false, got {str(is_asked)[:_MAX_SHOWN]!r}")
    if is_asked and fps is None and facts.num_frames is None:
        raise refusal(where, "do_sample_frames needs fps, the rate of the given frames, or num_frames")
    has_too_many = facts.num_frames is not None and count > facts.num_frames
    if is_asked or (is_asked is None and has_too_many):
        return sampler(count, fps if fps is not None else facts.fps)
    return FrameSample(np.arange(count), fps if fps is not None else facts.fps)


def _number(metadata: Mapping[str, Any], name: str, where: str) -> float | None:
    value = metadata.get(name)
    if value is None:
        return None
    is_number = not isinstance(value, bool) and isinstance(value, Real)  # numpy's are such, too
    number = float(value) if is_number else 0.0
    if not 0 < number < math.inf:
        raise refusal(where, f"{name} of a video's metadata must be a positive number, got {str(value)[:_MAX_SHOWN]!r}")
    return number
