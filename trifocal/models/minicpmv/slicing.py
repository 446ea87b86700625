"""How MiniCPM-V cuts pictures: an overview, and a grid of slices of about 448 x 448 pixels each. Plain numpy.

Source: OpenBMB's `image_processing_minicpmv.py`, the same in all versions. Sizes of a `SlicePlan` are (width, height)
as there; each is a multiple of the patch size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trifocal.media.patches import PatchLayout, resize
from trifocal.media.plan import Size

WidthHeight = tuple[int, int]  # in pixels


@dataclass(frozen=True, slots=True)
class SlicePlan:
    """Sizes of the overview and of one slice, and the grid (columns, rows) of slices; (0, 0) where there is none."""

    overview: WidthHeight
    grid: tuple[int, int] = (0, 0)
    slice_size: WidthHeight = (0, 0)

    @property
    def num_slices(self) -> int:
        """Slices beside the overview."""
        return self.grid[0] * self.grid[1]

    @property
    def cuts(self) -> tuple[Size, tuple[int, int], Size | None]:
        """The words of `ItemPlan`: `resized`, `tiles` and `overview`. What is not sliced is one tile, its overview."""
        overview = self.overview[1], self.overview[0]
        if not self.num_slices:
            return overview, (1, 1), None
        (columns, rows), (width, height) = self.grid, self.slice_size
        return (rows * height, columns * width), (rows, columns), overview


@dataclass(frozen=True, slots=True)
class Slicer:
    """`resolution`: a slice has about the area of a square with this side; `patch`: pixels along a patch."""

    resolution: int
    patch: int

    def plan(self, width: int, height: int, max_slices: int) -> SlicePlan:
        """How a picture is cut into at most `max_slices` slices, known before any pixel work."""
        num_wanted = min(math.ceil(width * height / self.resolution**2), max_slices)
        if num_wanted <= 1:
            return SlicePlan(self._fit(width, height, may_grow=True))
        columns, rows = _best_grid(width / height, num_wanted, max_slices)
        cell = _nearest_multiple(width, columns) / columns, _nearest_multiple(height, rows) / rows
        return SlicePlan(self._fit(width, height, may_grow=False), (columns, rows), self._fit(*cell, may_grow=True))

    def cut(
        self, pixels: NDArray[np.uint8], resized: Size, tiles: tuple[int, int], overview: Size | None
    ) -> NDArray[np.uint8]:
        """RGB [height, width, 3] -> patch rows of the overview, if any, then of the tiles in reading order."""
        layout = PatchLayout(self.patch, merge=1, temporal=1)
        (rows, columns), height, width = tiles, resized[0] // tiles[0], resized[1] // tiles[1]
        fine = resize(pixels, resized)
        cut = fine.reshape(rows, height, columns, width, 3).swapaxes(1, 2).reshape(-1, height, width, 3)
        if overview is None:
            return layout.patchify(cut)
        return np.concatenate([layout.patchify(resize(pixels, overview)[None]), layout.patchify(cut)])

    def _fit(self, width: float, height: float, *, may_grow: bool) -> WidthHeight:
        """About `resolution` squared pixels of this shape; a smaller picture keeps its size unless it `may_grow`."""
        if may_grow or width * height > self.resolution**2:
            ratio = width / height
            height = int(self.resolution / math.sqrt(ratio))
            width = int(height * ratio)
        return _nearest_multiple(width, self.patch), _nearest_multiple(height, self.patch)


def _best_grid(ratio: float, num_wanted: int, max_slices: int) -> tuple[int, int]:
    """(columns, rows) of about `num_wanted` slices nearest in shape to a picture of `ratio`; the first of equals."""
    counts = [count for count in (num_wanted - 1, num_wanted, num_wanted + 1) if 1 < count <= max_slices]
    grids = [(columns, count // columns) for count in counts for columns in range(1, count + 1) if count % columns == 0]
    return min(grids, key=lambda grid: abs(math.log(ratio) - math.log(grid[0] / grid[1])))


def _nearest_multiple(length: float, unit: int) -> int:
    return max(round(length / unit) * unit, unit)
