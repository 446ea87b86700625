"""int4 weights as the kernels read them: (q - zero) * scale, by groups of inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trifocal.kernels.blocks import all_rows, empty_blocks, store_rows

_NIBBLES = (0, 2, 4, 6, 1, 3, 5, 7)  # which weight of eight lies in each nibble of a 32-bit word, low end first


@dataclass(frozen=True)
class Int4Weight:
    """words int32 [out / 16, in / 8, 16], scale float16 and zero uint8 [out / 16, in / group, 16]: see `blocks`."""

    words: Tensor
    scale: Tensor
    zero: Tensor
    out_features: int

    @classmethod
    def empty(cls, out_features: int, in_features: int, group: int) -> Int4Weight:
        """Room for a weight [out_features, in_features]; `group` is a multiple of 8 and divides in_features."""
        return cls(
            empty_blocks(out_features, in_features // 8),
            empty_blocks(out_features, in_features // group, torch.float16),
            empty_blocks(out_features, in_features // group, torch.uint8),
            out_features,
        )

    @property
    def in_features(self) -> int:
        return 8 * self.words.shape[1]

    @property
    def group(self) -> int:
        """Inputs that share a scale."""
        return self.in_features // self.scale.shape[1]

    def store(self, start: int, q: Tensor) -> None:
        """Put integers 0 .. 15 [rows, in] in as outputs `start ..`."""
        eight = q.to(torch.uint8).contiguous().view(torch.int64)
        pairs = eight | eight >> 12  # bytes 0, 4, 1 and 5 are now the nibbles of the word two by two, see _NIBBLES
        words = pairs & 0xFF | pairs >> 24 & 0xFF00 | pairs << 8 & 0xFF0000 | pairs >> 16 & 0xFF000000
        words = words.to(torch.int32)
        store_rows(self.words, start, words)

    def store_scale(self, start: int, scale: Tensor) -> None:
        """Put [rows, in / group] in as those of outputs `start ..`."""
        store_rows(self.scale, start, scale)

    def store_zero(self, start: int, zero: Tensor) -> None:
        """Put [rows, in / group] in as those of outputs `start ..`."""
        store_rows(self.zero, start, zero)

    def unpack(self) -> tuple[Tensor, Tensor, Tensor]:
        """q uint8 [out, in], scale float16 and zero uint8 [out, in / group]."""
        words, scale, zero = (all_rows(blocks, self.out_features) for blocks in (self.words, self.scale, self.zero))
        nibbles = [words >> 4 * _NIBBLES.index(index) & 15 for index in range(8)]
        return torch.stack(nibbles, dim=-1).flatten(1).to(torch.uint8), scale, zero
