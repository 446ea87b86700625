"""int4 weights as the kernels read them: (q - zero) * scale, by groups of inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_NIBBLES = (0, 2, 4, 6, 1, 3, 5, 7)  # which weight of eight lies in each nibble of a 32-bit word, low end first
_BLOCK = 16  # outputs whose words lie side by side, so that a block is read from its beginning to its end


@dataclass(frozen=True)
class Int4Weight:
    """words int32 [out / 16, in / 8, 16], scale float16 and zero uint8 [out / 16, in / group, 16]."""

    words: Tensor
    scale: Tensor
    zero: Tensor
    out_features: int

    @classmethod
    def empty(cls, out_features: int, in_features: int, group: int) -> Int4Weight:
        """Room for a weight [out_features, in_features]; `group` is a multiple of 8 and divides in_features."""
        blocks = -(-out_features // _BLOCK)
        return cls(
            torch.empty(blocks, in_features // 8, _BLOCK, dtype=torch.int32),
            torch.empty(blocks, in_features // group, _BLOCK, dtype=torch.float16),
            torch.empty(blocks, in_features // group, _BLOCK, dtype=torch.uint8),
            out_features,
        )

    @property
    def in_features(self) -> int:
        """Inputs."""
        return 8 * self.words.shape[1]

    @property
    def group(self) -> int:
        """Inputs that share a scale."""
        return self.in_features // self.scale.shape[1]

    def store(self, start: int, q: Tensor) -> None:
        """Put integers 0 .. 15 [rows, in] in as outputs `start ..`."""
        nibbles = q.to(torch.int32).view(len(q), -1, 8)
        words = torch.zeros_like(nibbles[..., 0])
        for place, index in enumerate(_NIBBLES):
            words |= nibbles[..., index] << 4 * place
        _put(self.words, start, words)

    def store_scale(self, start: int, scale: Tensor) -> None:
        """Put [rows, in / group] in as those of outputs `start ..`."""
        _put(self.scale, start, scale)

    def store_zero(self, start: int, zero: Tensor) -> None:
        """Put [rows, in / group] in as those of outputs `start ..`."""
        _put(self.zero, start, zero)

    def unpack(self) -> tuple[Tensor, Tensor, Tensor]:
        """q uint8 [out, in], scale float16 and zero uint8 [out, in / group]."""
        words, scale, zero = (self._rows(blocks) for blocks in (self.words, self.scale, self.zero))
        nibbles = [words >> 4 * _NIBBLES.index(index) & 15 for index in range(8)]
        return torch.stack(nibbles, dim=-1).flatten(1).to(torch.uint8), scale, zero

    def _rows(self, blocks: Tensor) -> Tensor:
        return blocks.transpose(1, 2).flatten(0, 1)[: self.out_features]


def _put(blocks: Tensor, start: int, rows: Tensor) -> None:
    index = torch.arange(start, start + len(rows), device=rows.device)
    blocks[index // _BLOCK, :, index % _BLOCK] = rows.to(blocks.dtype)
