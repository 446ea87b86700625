"""A picture as square tiles: which grid, and the tiles themselves.

Sources: `dynamic_preprocess` in the models' README, and transformers' GotOcr2ImageProcessorPil; they agree bit for bit.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from trifocal.media.patches import resize
from trifocal.models.internvl.options import TileLimits


@lru_cache(maxsize=64)
def _grids(min_tiles: int, max_tiles: int) -> list[tuple[int, int]]:
    """(columns, rows) of every grid within the limits, small ones first."""
    grids = [(columns, rows) for columns in range(1, max_tiles + 1) for rows in range(1, max_tiles // columns + 1)]
    return sorted((grid for grid in grids if grid[0] * grid[1] >= min_tiles), key=lambda grid: grid[0] * grid[1])


def choose_tiles(height: int, width: int, tile: int, limits: TileLimits) -> tuple[int, int, bool]:
    """Rows and columns of a picture's tiles, and whether a thumbnail follows: where it is wanted and tiles are several.

    Their aspect ratio is the nearest to the picture's. Of equally near ones a larger grid is taken if the picture has
    more than half of its pixels.
    """
    best, least = (1, 1), float("inf")
    for columns, rows in _grids(limits.min_tiles, limits.max_tiles):
        difference = abs(width / height - columns / rows)
        is_filled = width * height > 0.5 * tile * tile * columns * rows
        if difference < least or (difference == least and is_filled):
            best, least = (columns, rows), difference
    columns, rows = best
    return rows, columns, limits.has_thumbnail and rows * columns > 1


def cut(pixels: NDArray[np.uint8], tile: int, grid: tuple[int, int], *, has_thumbnail: bool) -> NDArray[np.uint8]:
    """RGB [height, width, 3] -> [tiles, tile, tile, 3]: the resized picture row by row, and last the thumbnail.

    `grid` are rows and columns.
    """
    rows, columns = grid
    resized = resize(pixels, (rows * tile, columns * tile))
    tiles = resized.reshape(rows, tile, columns, tile, 3).swapaxes(1, 2).reshape(-1, tile, tile, 3)
    return np.concatenate([tiles, resize(pixels, (tile, tile))[None]]) if has_thumbnail else tiles
