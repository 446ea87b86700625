"""Media as a message names them, and decoded, as every part below the server sees them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trifocal.media.plan import ItemPlan
from trifocal.types import Modality


@dataclass(frozen=True, slots=True)
class MediaRef:
    """A media item as a message names it: a URL, a list of them for the frames of a clip, or (offline) an object.

    `where` is its place, for error messages; `options` what its part says about it (`prompt.part_options`).
    """

    modality: Modality
    source: Any
    where: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FrameSample:
    """Which frames of a clip are used (indices into the whole clip, rising) and how many of them make one second."""

    indices: NDArray[np.int64]
    fps: float


@dataclass(frozen=True, slots=True)
class Image:
    """RGB uint8 [height, width, 3]; orientation applied, transparency flattened on white.

    `plan` says what is to become of them. None: a processor makes it of the pixels and the options of their prompt.
    """

    pixels: NDArray[np.uint8]
    plan: ItemPlan | None = None
    modality: Modality = "image"

    @property
    def size(self) -> tuple[int, int, int]:
        """(frames, height, width)."""
        return 1, self.pixels.shape[0], self.pixels.shape[1]


@dataclass(frozen=True, slots=True)
class Video:
    """Sampled RGB frames uint8 [num_frames, height, width, 3] and `fps`, sampled frames per second of the clip.

    `plan`: see `Image`.
    """

    frames: NDArray[np.uint8]
    fps: float
    plan: ItemPlan | None = None
    modality: Modality = "video"

    @property
    def pixels(self) -> NDArray[np.uint8]:
        return self.frames

    @property
    def size(self) -> tuple[int, int, int]:
        """(frames, height, width)."""
        return self.frames.shape[0], self.frames.shape[1], self.frames.shape[2]


Media = Image | Video
