"""A start for the patch projection that sees edges from the first step.

Neighbouring pixels are alike, so under a random projection the mean color of a patch drowns what tells a star from a
circle, and finding filters for that takes the optimizer very long. The projection starts instead as low cosine
frequencies of brightness, two color differences, and their change between the two frames of a patch, each scaled to
the same variance on generated pictures. It is trained like every other weight afterwards.
"""

from __future__ import annotations

import math
from random import Random

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tools.demo_model.preprocess import PATCH, TEMPORAL, image_to_patches
from tools.demo_model.samples import picture_sample

# (color mix, frame mix, how many of the lowest frequencies): 128 filters in all.
_BRIGHT, _RED_GREEN, _BLUE_YELLOW = (1.0, 1.0, 1.0), (1.0, -1.0, 0.0), (1.0, 1.0, -2.0)
_SAME, _CHANGE = (1.0, 1.0), (-1.0, 1.0)
_BANKS = ((_BRIGHT, _SAME, 56), (_RED_GREEN, _SAME, 22), (_BLUE_YELLOW, _SAME, 22), (_BRIGHT, _CHANGE, 18),
          (_RED_GREEN, _CHANGE, 5), (_BLUE_YELLOW, _CHANGE, 5))  # fmt: skip
_SCALE = 0.5


def _cosines(count: int) -> list[NDArray[np.float64]]:
    """The `count` lowest two-dimensional cosines on a patch, each [14, 14] with norm 1."""
    k = (np.arange(PATCH) + 0.5) * math.pi / PATCH
    waves = [np.cos(k * u) * math.sqrt((1 if u == 0 else 2) / PATCH) for u in range(PATCH)]
    pairs = [(u, v) for u in range(PATCH) for v in range(PATCH)]
    pairs.sort(key=lambda pair: (pair[0] ** 2 + pair[1] ** 2, pair))
    return [np.outer(waves[u], waves[v]) for u, v in pairs[:count]]


def _directions() -> Tensor:
    """[128, 1176] orthonormal rows over (color, frame, row, column)."""
    rows = []
    for color, frame, count in _BANKS:
        mix = np.einsum("c,t->ct", np.asarray(color) / np.linalg.norm(color), np.asarray(frame) / math.sqrt(TEMPORAL))
        rows += [np.einsum("ct,hw->cthw", mix, wave).reshape(-1) for wave in _cosines(count)]
    return torch.from_numpy(np.stack(rows)).float()


def patch_filters(seed: int, pictures: int = 80) -> Tensor:
    """[128, 3, 2, 14, 14], to start `visual.patch_embed.proj.weight` with."""
    rng = Random(f"filters-{seed}")
    kinds = ("single", "pair", "group", "text")
    samples = [picture_sample(rng, kinds[k % 4]) for k in range(pictures)]
    rows = torch.cat([torch.from_numpy(image_to_patches(image).rows) for sample in samples for image in sample.images])
    directions = _directions()
    spread = (rows @ directions.T).pow(2).mean(0).sqrt()
    # Pictures show no change between frames; it is taken to vary like the picture itself.
    offset = 0
    still: dict[tuple[float, ...], Tensor] = {}
    for color, frame, count in _BANKS:
        if frame == _SAME:
            still[color] = spread[offset : offset + count]
        else:
            spread[offset : offset + count] = still[color][:count]
        offset += count
    return (_SCALE * directions / spread[:, None]).reshape(-1, 3, TEMPORAL, PATCH, PATCH)
