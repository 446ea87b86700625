"""Media as a message names them, and decoded, as every part below the server sees them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

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

    `options` are the item's own mm_processor_kwargs, complete; None: those of its prompt.
    """

    pixels: NDArray[np.uint8]
    modality: Modality = "image"
    options: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Video:
    """Sampled RGB frames uint8 [num_frames, height, width, 3] and `fps`, sampled frames per second of the clip.

    `options`: see `Image`.
    """

    frames: NDArray[np.uint8]
    fps: float
    modality: Modality = "video"
    options: Mapping[str, Any] | None = None


Media = Image | Video
