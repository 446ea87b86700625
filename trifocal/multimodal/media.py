"""Decoded media as every part below the server sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trifocal.types import Modality


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
