"""What a request may say about slices and frames, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trifocal.errors import RequestError
from trifocal.prompt.part_options import is_count, is_rate

MAX_FRAMES = 64
VIDEO_MAX_SLICES = 2
MOST_SLICES = 128  # that an error would propose; more are taken


@dataclass(frozen=True, slots=True)
class MediaOptions:
    """mm_processor_kwargs of this family; `None` where they do not say. `num_frames` wins over `fps`.

    `max_slice_nums` holds for pictures and frames; without it a picture has the checkpoint's limit (9 as released) and
    a frame 2. `use_image_id` numbers the pictures of a prompt (2.6 does so unless told otherwise).
    """

    max_slice_nums: int | None = None
    use_image_id: bool | None = None
    fps: float = 1.0
    num_frames: int | None = None

    @classmethod
    def parse(cls, options: Mapping[str, Any]) -> MediaOptions:
        """Check `options`. Raises `RequestError(param="mm_processor_kwargs")`."""
        known = [item.name for item in fields(cls)]
        values = {name: value for name, value in options.items() if value is not None}
        for name, value in values.items():
            if name not in known:
                raise _bad(f"{name!r} is not known; known: {', '.join(known)}")
            if name in ("max_slice_nums", "num_frames") and not is_count(value):
                raise _bad(f"{name} must be an integer of at least 1, got {value!r}")
        if not isinstance(values.get("use_image_id", True), bool):
            raise _bad(f"use_image_id must be true or false, got {values['use_image_id']!r}")
        fps = values.get("fps", 1.0)
        if not is_rate(fps):
            raise _bad(f"fps must be a positive number, got {fps!r}")
        return cls(**values)

    def frame_indices(self, total: int, fps: float) -> NDArray[np.int64]:
        """The frames used of a clip of `total` at `fps`: every so many, or `num_frames` spread evenly.

        Source: the model card's `encode_video`; more than 64 by its rule become 64 of them.
        """
        if self.num_frames is not None:
            return _spread(np.arange(total), self.num_frames)
        step = max(1, round(min(fps / self.fps, total)))
        return _spread(np.arange(0, total, step), MAX_FRAMES)


def _spread(frames: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """At most `most` of `frames`, each from the middle of an equal share."""
    if len(frames) <= most:
        return frames
    gap = len(frames) / most
    return frames[[int(index * gap + gap / 2) for index in range(most)]]


def _bad(message: str) -> RequestError:
    return RequestError(f"mm_processor_kwargs: {message}", param="mm_processor_kwargs")
