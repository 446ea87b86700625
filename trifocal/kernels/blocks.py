"""Weights as kernels read them: in blocks of 16 outputs whose words lie side by side.

A word is 32 bits: some consecutive inputs of an output, two in bfloat16, four in int8, eight in int4. A kernel
reads a block from its beginning to its end, one vector of outputs after the other, at the memory's speed. Behind the
last output a block holds anything.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_BLOCK = 16


def empty_blocks(out_features: int, depth: int, dtype: torch.dtype = torch.int32) -> Tensor:
    """[out_features / 16 rounded up, depth, 16], uninitialised."""
    return torch.empty(-(-out_features // _BLOCK), depth, _BLOCK, dtype=dtype)


def store_rows(blocks: Tensor, start: int, rows: Tensor) -> None:
    """Put [outputs, depth] in as those of outputs `start ..`."""
    index = torch.arange(start, start + len(rows), device=rows.device)
    blocks[index // _BLOCK, :, index % _BLOCK] = rows.to(blocks.dtype)


def take_rows(blocks: Tensor, index: Tensor) -> Tensor:
    """Those of outputs `index`, int64 [n]: [n, depth]."""
    return _side_by_side(blocks[index // _BLOCK, :, index % _BLOCK])


def all_rows(blocks: Tensor, out_features: int) -> Tensor:
    """[out_features, depth]."""
    return _side_by_side(blocks.transpose(1, 2).flatten(0, 1)[:out_features])


def words_of_int8(rows: Tensor) -> Tensor:
    """int8 [n, in] -> int32 [n, in / 4 rounded up]. Bytes are 128 higher: the instruction for them is unsigned."""
    return F.pad(rows ^ -128, (0, -rows.shape[1] % 4)).view(torch.int32)


def int8_of_words(words: Tensor, in_features: int) -> Tensor:
    """int8 [n, in_features] of the words that `words_of_int8` made."""
    return words.view(torch.int8)[:, :in_features] ^ -128


def _side_by_side(rows: Tensor) -> Tensor:
    """A copy that can be viewed as elements of another size; `contiguous` leaves odd strides to a column of one."""
    return rows.new_empty(rows.shape).copy_(rows)
