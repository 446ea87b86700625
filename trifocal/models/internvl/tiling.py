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


def choose_grid(height: int, width: int, tile: int, limits: TileLimits) -> tuple[int, int]:
    """The (columns, rows) whose aspect ratio is nearest to the picture's.

    Of equally near ones a larger grid is taken if the picture has more than half of its pixels.
    """
    best, least = (1, 1), float("inf")
    for columns, rows in _grids(limits.min_tiles, limits.max_tiles):
        difference = abs(width / height - columns / rows)
        is_filled = width * height > 0.5 * tile * tile * columns * rows
        if difference < least or (difference == least and is_filled):
            best, least = (columns, rows), difference
    return best


def num_tiles(height: int, width: int, tile: int, limits: TileLimits) -> int:
    """Tiles of a picture, the thumbnail included."""
    columns, rows = choose_grid(height, width, tile, limits)
    count = columns * rows
    return count + 1 if limits.has_thumbnail and count > 1 else count


def cut(pixels: NDArray[np.uint8], tile: int, limits: TileLimits) -> NDArray[np.uint8]:
    """RGB [height, width, 3] -> [tiles, tile, tile, 3]: the resized picture row by row, and last the thumbnail."""
    height, width, _ = pixels.shape
    columns, rows = choose_grid(height, width, tile, limits)
    resized = resize(pixels, (rows * tile, columns * tile))
    tiles = resized.reshape(rows, tile, columns, tile, 3).swapaxes(1, 2).reshape(-1, tile, tile, 3)
    if limits.has_thumbnail and len(tiles) > 1:
        return np.concatenate([tiles, resize(pixels, (tile, tile))[None]])
    return tiles
