"""Where the rows of a patch grid lie: their window order, the segments they attend in, their 2-D positions.

Rows come in merge-block order: the 2x2 patches of a token are neighbours. A window is a square of merged blocks
(4x4 in the released models); windows at the right and lower edge are smaller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Grid = tuple[int, ...]  # (t, h, w) in patches


@dataclass(frozen=True)
class Layout:
    """Several grids packed into one sequence of rows.

    order: int64 [num_blocks], the merged blocks in window order (indices into the packed, unordered sequence).
    positions: int64 [num_rows, 2], row and column of each patch, in packed order.
    window_lengths, frame_lengths: rows of each window and of each frame, in the order that `order` gives.
    """

    order: NDArray[np.int64]
    positions: NDArray[np.int64]
    window_lengths: list[int]
    frame_lengths: list[int]


def pack(grids: Sequence[Grid], merge: int, window: int) -> Layout:
    """Lay out `grids` one after another. `window` counts merged blocks along a side."""
    orders, positions, window_lengths, frame_lengths = [], [], [], []
    offset = 0
    for t, h, w in grids:
        order, lengths = _frame_windows(h // merge, w // merge, window)
        for _ in range(t):
            orders.append(order + offset)
            offset += len(order)
        positions.append(np.tile(_frame_positions(h, w, merge), (t, 1)))
        window_lengths += [length * merge * merge for length in lengths] * t
        frame_lengths += [h * w] * t
    return Layout(np.concatenate(orders), np.concatenate(positions), window_lengths, frame_lengths)


@lru_cache(maxsize=64)
def _frame_windows(height: int, width: int, window: int) -> tuple[NDArray[np.int64], list[int]]:
    """Block indices of one frame window by window, and how many blocks each window has."""
    index = np.arange(height * width, dtype=np.int64).reshape(height, width)
    windows = [
        index[top : top + window, left : left + window].ravel()
        for top in range(0, height, window)
        for left in range(0, width, window)
    ]
    return np.concatenate(windows), [len(blocks) for blocks in windows]


@lru_cache(maxsize=64)
def _frame_positions(h: int, w: int, merge: int) -> NDArray[np.int64]:
    """[h * w, 2]: row and column of the patches of one frame in merge-block order."""
    grid = np.stack(np.meshgrid(np.arange(h), np.arange(w), indexing="ij"), axis=-1)
    blocks = grid.reshape(h // merge, merge, w // merge, merge, 2).swapaxes(1, 2)
    return np.ascontiguousarray(blocks.reshape(-1, 2))
