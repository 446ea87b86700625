"""Contracts of attention over a paged KV cache: the cache, what a step tells a backend, and the backend itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from trifocal.kernels.pages import empty_together


@dataclass(frozen=True)
class KVCache:
    """Keys and values of every layer, each [num_layers, num_blocks, num_kv_heads, block_size, head_dim].

    A head's tokens of a block lie side by side: decoding then reads long stretches of memory. In int8 each key and each
    value of a head has a float32 scale, a 127th of its largest element: [num_layers, num_blocks, num_kv_heads,
    block_size].
    """

    keys: Tensor
    values: Tensor
    key_scales: Tensor | None = None
    value_scales: Tensor | None = None

    @classmethod
    def allocate(cls, shape: tuple[int, int, int, int, int], *, dtype: torch.dtype, device: torch.device) -> KVCache:
        """An uninitialised cache; pages of a CPU cache cost memory only once they are written."""
        layouts: list[tuple[tuple[int, ...], torch.dtype]] = [(shape, dtype)] * 2
        if dtype == torch.int8:
            layouts += [(shape[:-1], torch.float32)] * 2
        return cls(*empty_together(layouts, device))

    @staticmethod
    def bytes_per_head(head_dim: int, dtype: torch.dtype) -> int:
        """What the key and the value of one token and one kv head take in one layer, scales included."""
        scale = torch.float32.itemsize if dtype == torch.int8 else 0
        return 2 * (head_dim * dtype.itemsize + scale)

    @property
    def block_size(self) -> int:
        """Tokens per block."""
        return self.keys.shape[3]

    def rows(self, slots: Tensor) -> Tensor:
        """The vectors of slots (`block_id * block_size + offset`), int64 [n] -> int64 [n * num_kv_heads], head by head,
        as numbers among all vectors of a layer."""
        _, _, heads, size, _ = self.keys.shape
        first = slots // size * (heads * size) + slots % size
        return (first[:, None] + torch.arange(heads, device=slots.device) * size).flatten()

    def write(self, layer: int, rows: Tensor, k: Tensor, v: Tensor) -> None:
        """Keep k and v [n, num_kv_heads, head_dim] as `rows` of a layer."""
        for new, kept, scales in ((k, self.keys, self.key_scales), (v, self.values, self.value_scales)):
            flat = new.flatten(0, 1)
            if scales is not None:
                flat = flat.float()
                scale = flat.abs().amax(-1) / 127
                scales[layer].flatten().index_copy_(0, rows, scale)
                flat = (flat / scale.where(scale > 0, 1)[:, None]).round_().to(torch.int8)
            kept[layer].flatten(0, 2).index_copy_(0, rows, flat)

    def read(self, layer: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        """`rows` of a layer in float32: keys and values, each [n, num_kv_heads, head_dim]."""
        return self._read(layer, rows, self.keys, self.key_scales), self._read(
            layer, rows, self.values, self.value_scales
        )

    def _read(self, layer: int, rows: Tensor, kept: Tensor, scales: Tensor | None) -> Tensor:
        found = kept[layer].flatten(0, 2).index_select(0, rows).float()
        if scales is not None:
            found *= scales[layer].flatten().index_select(0, rows)[:, None]
        return found.view(-1, kept.shape[2], kept.shape[4])


@dataclass(frozen=True)
class AttentionBatch:
    """Where the tokens of one step lie. Tokens of sequence `i` are `query_lens[i]` consecutive rows of q, k and v.

    slots: int64 [num_tokens], `block_id * block_size + offset` of each token's own K and V.
    block_tables: int64 [num_seqs, max_blocks] on the device, rows padded with 0.
    query_lens, context_lens: per sequence, tokens in this step, and tokens attended to in all (these included): the
    query rows are the last `query_lens[i]` of the `context_lens[i]` positions, masked causally.
    """

    slots: Tensor
    block_tables: Tensor
    query_lens: list[int]
    context_lens: list[int]


class AttentionBackend(ABC):
    """Causal attention of one step. `begin` once per step, then one call per layer.

    A call writes k and v into the cache before it reads it, for all sequences: a sequence may reuse a block that
    another one fills in the same step.
    """

    def __init__(self, cache: KVCache) -> None:
        self.cache = cache

    @property
    def can_be_captured(self) -> bool:
        """Whether calls may be recorded in one step and repeated in others of as many rows (`kernels.graphs`).

        Then what they need of the step beside q, k and v lies where it lay before; `begin` writes it there.
        """
        return False

    @abstractmethod
    def begin(self, batch: AttentionBatch) -> None:
        """Take the layout of the step."""

    @abstractmethod
    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [n, heads, head_dim], k and v [n, kv_heads, head_dim] -> [n, heads, head_dim]; scale head_dim ** -0.5."""
