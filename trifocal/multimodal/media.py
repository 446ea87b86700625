"""Decoded media as every part below the server sees it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trifocal.types import Modality


@dataclass(frozen=True, slots=True)
class Image:
    """RGB uint8 [height, width, 3]; orientation applied, transparency flattened on white."""

    pixels: NDArray[np.uint8]
    modality: Modality = "image"


@dataclass(frozen=True, slots=True)
class Video:
    """Sampled RGB frames uint8 [num_frames, height, width, 3] and `fps`, sampled frames per second of the clip."""

    frames: NDArray[np.uint8]
    fps: float
    modality: Modality = "video"


Media = Image | Video
