"""How MiniCPM-V cuts pictures: an overview, and a grid of slices of about 448 x 448 pixels each. Plain numpy and PIL.

Source: OpenBMB's `image_processing_minicpmv.py`, the same in all versions. Sizes are (width, height), as in PIL and
there; each is a multiple of the patch size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from trifocal.media.patches import PatchLayout

Size = tuple[int, int]  # (width, height) in pixels


@dataclass(frozen=True, slots=True)
class SlicePlan:
    """Sizes of the overview and of one slice, and the grid (columns, rows) of slices; (0, 0) where there is none."""

    overview: Size
    grid: tuple[int, int] = (0, 0)
    slice_size: Size = (0, 0)

    @property
    def num_slices(self) -> int:
        """Slices beside the overview."""
        return self.grid[0] * self.grid[1]


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

    def cut(self, pixels: NDArray[np.uint8], plan: SlicePlan) -> NDArray[np.uint8]:
        """RGB [height, width, 3] -> patch rows of the overview, then of the slices in reading order."""
        picture = PIL.Image.fromarray(pixels)
        layout = PatchLayout(self.patch, merge=1, temporal=1)
        overview = layout.patchify(_resized(picture, plan.overview)[None])
        if not plan.num_slices:
            return overview
        (columns, rows), (width, height) = plan.grid, plan.slice_size
        fine = _resized(picture, (columns * width, rows * height))
        slices = fine.reshape(rows, height, columns, width, 3).swapaxes(1, 2).reshape(-1, height, width, 3)
        return np.concatenate([overview, layout.patchify(slices)])

    def grid_of(self, size: Size) -> tuple[int, int]:
        """(h, w) in patches of a tile of `size`."""
        return size[1] // self.patch, size[0] // self.patch

    def _fit(self, width: float, height: float, *, may_grow: bool) -> Size:
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


def _resized(picture: PIL.Image.Image, size: Size) -> NDArray[np.uint8]:
    return np.asarray(picture.resize(size, PIL.Image.Resampling.BICUBIC))
