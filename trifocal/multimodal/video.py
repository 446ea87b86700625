"""Clips from bytes or from Python objects: header first (`open_video`), the chosen frames when asked (`load_video`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from trifocal.multimodal.image import TargetSize, as_uint8, check_size, open_bytes, refusal, scaled, to_rgb
from trifocal.multimodal.media import Video
from trifocal.multimodal.processor import FrameSample
from trifocal.multimodal.video_file import VideoFile
from trifocal.types import RequestError

MAX_FRAME_BYTES = 2 << 30  # of all chosen frames of one clip, as RGB
MAX_FRAMES = 1_000_000  # nine hours at 30 a second: looking through more of them would hold a thread for minutes
MAX_ANIMATION_PIXELS = 500_000_000  # of all frames of an animated picture: each must be decoded, some seconds in all
_MAX_FPS = 1000.0

Sampler = Callable[[int, float], FrameSample]
"""(frames, frames per second of a clip) -> the frames to use."""


@dataclass(frozen=True, slots=True)
class OpenedVideo:
    """A clip known but for its pixels: `num_frames` at `fps`, `sample` the chosen ones; size as displayed."""

    source: Any
    num_frames: int
    fps: float
    height: int
    width: int
    sample: FrameSample
    where: str


def open_video(source: Any, sampler: Sampler, where: str, *, frames_fps: float = 2.0) -> OpenedVideo:
    """Open a video file or animated picture (bytes), frames (array [frames, height, width, 3], list of pictures), or
    (frames, metadata). Raises `RequestError`.

    Frames are taken as they are, all of them, at `metadata["fps"]` a second, `frames_fps` where that is not said.
    vLLM's metadata is understood: with `total_num_frames` and `frames_indices` the frames are a sample of a clip at
    `fps`; `do_sample_frames: true` has them sampled here.
    """
    if isinstance(source, bytes):
        if _is_animation(source):
            return _open_animation(source, sampler, where)
        file = VideoFile(source, where)
        return _opened(file, file.num_frames, file.fps, file.height, file.width, sampler, where)
    metadata: Mapping[str, Any] = {}
    if isinstance(source, tuple) and len(source) == 2 and isinstance(source[1], Mapping):
        source, metadata = source
    return _open_frames(_as_frames(source, where), metadata, sampler, where, frames_fps)


def load_video(opened: OpenedVideo, target: TargetSize | None = None) -> Video:
    """Decode the chosen frames and no others. Raises `RequestError`.

    With `target` each frame is scaled as it is decoded, so that a long clip never lies in memory at full size.
    """
    count = len(opened.sample.indices)
    height, width = (opened.height, opened.width) if target is None else target(count, opened.height, opened.width)
    if count * height * width * 3 > MAX_FRAME_BYTES:
        message = f"{count} frames of {width}x{height} are too many at once; choose fewer by fps or num_frames"
        raise refusal(opened.where, message)
    try:
        if isinstance(opened.source, np.ndarray):
            frames: Iterator[PIL.Image.Image] = (PIL.Image.fromarray(opened.source[k]) for k in opened.sample.indices)
        elif isinstance(opened.source, PIL.Image.Image):
            frames = _animation_frames(opened.source, opened.sample.indices)
        else:
            frames = map(PIL.Image.fromarray, opened.source.frames(opened.sample.indices))
        arrays = [np.asarray(scaled(frame, count, target)) for frame in frames]
    except RequestError:
        raise
    except Exception as error:  # decoders of broken files fail in every way there is
        raise refusal(opened.where, f"the video is broken or cut off: {error}") from None
    return Video(np.stack(arrays), opened.sample.fps)


# ---------------------------------------------------------------------------------------------- frames in memory


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


def _open_frames(
    frames: NDArray[np.uint8], metadata: Mapping[str, Any], sampler: Sampler, where: str, frames_fps: float
) -> OpenedVideo:
    count, height, width = frames.shape[:3]
    check_size(height, width, where)
    fps = _number(metadata.get("fps"), where)
    if metadata.get("do_sample_frames") and fps is not None:
        sample = sampler(count, fps)
    else:
        total = _number(metadata.get("total_num_frames"), where)
        if fps is not None and total is not None and metadata.get("frames_indices") is not None:
            fps *= count / total
        sample = FrameSample(np.arange(count), fps if fps is not None else frames_fps)
    return OpenedVideo(frames, count, fps or sample.fps, height, width, sample, where)


def _number(value: Any, where: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise refusal(where, f"fps and total_num_frames of a video's metadata must be positive numbers, got {value!r}")
    return float(value)


# ---------------------------------------------------------------------------------------------- animated pictures


def _is_animation(data: bytes) -> bool:
    return data[:4] == b"GIF8" or (data[:4] == b"RIFF" and data[8:12] == b"WEBP") or data[:4] == b"\x89PNG"


def _open_animation(data: bytes, sampler: Sampler, where: str) -> OpenedVideo:
    picture = open_bytes(data, where)
    check_size(picture.height, picture.width, where)
    try:
        count = getattr(picture, "n_frames", 1)
        if count * picture.height * picture.width > MAX_ANIMATION_PIXELS:
            raise refusal(where, f"the animation's {count} frames of {picture.width}x{picture.height} are too many")
        milliseconds = sum(_duration(picture, index) for index in range(count))
        picture.seek(0)
    except RequestError:
        raise
    except Exception as error:  # as in load_video
        raise refusal(where, f"the animation is broken or cut off: {error}") from None
    fps = min(count / milliseconds * 1000, _MAX_FPS)
    return _opened(picture, count, fps, picture.height, picture.width, sampler, where)


def _duration(picture: PIL.Image.Image, index: int) -> float:
    """Milliseconds that a frame is shown."""
    picture.seek(index)
    picture.load()  # WebP tells a frame's duration only then
    return picture.info.get("duration", 0) or 100.0  # as browsers show a frame that does not say


def _opened(source: Any, count: int, fps: float, height: int, width: int, sampler: Sampler, where: str) -> OpenedVideo:
    if count > MAX_FRAMES:
        raise refusal(where, f"the video has {count} frames; at most {MAX_FRAMES} are looked through")
    return OpenedVideo(source, count, fps, height, width, sampler(count, fps), where)


def _animation_frames(picture: PIL.Image.Image, indices: NDArray[np.int64]) -> Iterator[PIL.Image.Image]:
    for index in indices:
        picture.seek(int(index))
        yield to_rgb(picture)
