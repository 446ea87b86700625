"""What a checkpoint and a request say about the sizes of pictures and the frames of clips, checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trifocal.errors import RequestError
from trifocal.model_spec import positive_int
from trifocal.prompt.part_options import is_count, is_rate

# Class defaults of transformers' Qwen2VLImageProcessor, for a folder that says nothing.
DEFAULT_MIN_PIXELS = 56 * 56
DEFAULT_MAX_PIXELS = 28 * 28 * 1280
MOST_MIN_PIXELS = 28 * 28 * 16384  # nobody is to blow up a stamp to a wall
# qwen-vl-utils (vision_process.py): pixels of one frame, and of all frames together.
VIDEO_MIN_PIXELS = 128 * 28 * 28
VIDEO_MAX_PIXELS = 768 * 28 * 28
VIDEO_TOTAL_PIXELS = int(128000 * 28 * 28 * 0.9)
_MIN_MAX_RATIO = 1.05
DEFAULT_FPS = 2.0
DEFAULT_MIN_FRAMES = 4
DEFAULT_MAX_FRAMES = 768
FRAME_FACTOR = 2

_PIXEL_NAMES = ("min_pixels", "max_pixels")
_COUNT_NAMES = ("num_frames", "min_frames", "max_frames")
_SIZE_ALIASES = {"shortest_edge": "min_pixels", "longest_edge": "max_pixels"}
_RESIZED_NAMES = ("resized_height", "resized_width")
KNOWN = (*_PIXEL_NAMES, "total_pixels", "size", *_RESIZED_NAMES, "fps", *_COUNT_NAMES)


@dataclass(frozen=True, slots=True)
class PixelLimits:
    """Least and most pixels of a picture after resizing."""

    min_pixels: int
    max_pixels: int

    @classmethod
    def of_checkpoint(cls, preprocessor: Mapping[str, Any]) -> PixelLimits:
        """From preprocessor_config.json: `min_pixels`/`max_pixels` (older files) or `size`, which mean the same.

        Raises `ConfigError`.
        """
        size = preprocessor.get("size")
        named = size.items() if isinstance(size, Mapping) else ()
        found = {_SIZE_ALIASES.get(name, name): value for name, value in named}
        found |= {name: preprocessor[name] for name in _PIXEL_NAMES if preprocessor.get(name) is not None}
        limits = {"min_pixels": DEFAULT_MIN_PIXELS, "max_pixels": DEFAULT_MAX_PIXELS, **found}
        return cls(*(positive_int(limits[name], name, "preprocessor_config.json") for name in _PIXEL_NAMES))


@dataclass(frozen=True, slots=True)
class MediaOptions:
    """mm_processor_kwargs of this family; `None` where they do not say. `num_frames` is set only where it rules.

    `resized_height` and `resized_width`: the size to start from in place of an item's own, within the limits of a
    picture even for frames, as in qwen-vl-utils.
    """

    min_pixels: int | None = None
    max_pixels: int | None = None
    total_pixels: int = VIDEO_TOTAL_PIXELS
    resized_height: int | None = None
    resized_width: int | None = None
    fps: float = DEFAULT_FPS
    num_frames: int | None = None
    min_frames: int = DEFAULT_MIN_FRAMES
    max_frames: int = DEFAULT_MAX_FRAMES

    @classmethod
    def parse(cls, options: Mapping[str, Any]) -> MediaOptions:
        """Check `options`. Raises `RequestError(param="mm_processor_kwargs")`.

        Where two speak of the same (`size` and `max_pixels`, `fps` and `num_frames`), the later rules: options of the
        request come after those of the server.
        """
        values: dict[str, Any] = {}
        for name, value in options.items():
            if name not in KNOWN:
                raise _bad(f"{name!r} is not known; known: {', '.join(KNOWN)}")
            if name == "size":
                values |= _size_options(value)
            elif value is not None:
                values[name] = value
                if name == "fps":
                    values.pop("num_frames", None)
        for name in (*_PIXEL_NAMES, "total_pixels", *_RESIZED_NAMES, *_COUNT_NAMES):
            if name in values:
                _check_count(name, values[name])
        fps = values.get("fps", DEFAULT_FPS)
        if not is_rate(fps):
            raise _bad(f"fps must be a positive number, got {fps!r}")
        if len(values.keys() & set(_RESIZED_NAMES)) == 1:
            raise _bad("resized_height and resized_width must be given together")
        parsed = cls(**values)
        if parsed.min_pixels is not None and parsed.min_pixels > min(parsed.max_pixels or math.inf, MOST_MIN_PIXELS):
            raise _bad(f"min_pixels must be at most max_pixels and {MOST_MIN_PIXELS}, got {parsed.min_pixels}")
        if parsed.min_frames > parsed.max_frames and {"min_frames", "max_frames"} <= values.keys():
            raise _bad(f"min_frames {parsed.min_frames} is above max_frames {parsed.max_frames}")
        return parsed

    def image_limits(self, checkpoint: PixelLimits) -> PixelLimits:
        """Limits of a picture: the request's, else the checkpoint's."""
        return PixelLimits(self.min_pixels or checkpoint.min_pixels, self.max_pixels or checkpoint.max_pixels)

    def frame_limits(self, checkpoint: PixelLimits, num_frames: int) -> PixelLimits:
        """Limits of each of `num_frames` frames, as in qwen-vl-utils: an even share of the clip's total, bounded.

        A checkpoint whose pictures are smaller than the least frame of qwen-vl-utils is a small model that was never
        made for such frames: its frames keep to the limits of its pictures.
        """
        least, most = VIDEO_MIN_PIXELS, min(VIDEO_MAX_PIXELS, checkpoint.max_pixels)
        if most < least * _MIN_MAX_RATIO:
            least = checkpoint.min_pixels
        least = self.min_pixels or least
        share = self.total_pixels / num_frames * FRAME_FACTOR
        most = max(min(most, int(share)), int(least * _MIN_MAX_RATIO))
        return PixelLimits(least, min(self.max_pixels or most, most))

    def num_sampled(self, total: int, fps: float) -> int:
        """How many of a clip's `total` frames are used: even, unless there is only one."""
        if total < FRAME_FACTOR:
            return total
        if self.num_frames is not None:
            wanted: float = round(self.num_frames / FRAME_FACTOR) * FRAME_FACTOR
        else:
            least = math.ceil(self.min_frames / FRAME_FACTOR) * FRAME_FACTOR
            most = self.max_frames // FRAME_FACTOR * FRAME_FACTOR
            wanted = min(max(total / fps * self.fps, least), most)
        return max(int(min(wanted, total)) // FRAME_FACTOR * FRAME_FACTOR, FRAME_FACTOR)


def _bad(message: str) -> RequestError:
    return RequestError(f"mm_processor_kwargs: {message}", param="mm_processor_kwargs")


def _size_options(size: object) -> dict[str, Any]:
    """`size` in the words of the other options."""
    if size is None:
        return {}
    if not isinstance(size, Mapping) or not set(size) <= {*_SIZE_ALIASES, *_PIXEL_NAMES}:
        raise _bad("size must be an object with shortest_edge and longest_edge (in pixels)")
    return {_SIZE_ALIASES.get(str(name), str(name)): value for name, value in size.items()}


def _check_count(name: str, value: object) -> None:
    if not is_count(value):
        raise _bad(f"{name} must be an integer of at least 1, got {value!r}")
