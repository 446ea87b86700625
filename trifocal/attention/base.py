"""Contracts of attention over a paged KV cache: the cache, what a step tells a backend, and the backend itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class KVCache:
    """Keys and values of every layer, each [num_layers, num_blocks, block_size, num_kv_heads, head_dim]."""

    keys: Tensor
    values: Tensor

    @classmethod
    def allocate(cls, shape: tuple[int, int, int, int, int], *, dtype: torch.dtype, device: torch.device) -> KVCache:
        """An uninitialised cache; pages of a CPU cache cost memory only once they are written."""
        return cls(torch.empty(shape, dtype=dtype, device=device), torch.empty(shape, dtype=dtype, device=device))

    @property
    def block_size(self) -> int:
        """Tokens per block."""
        return self.keys.shape[2]


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

    @abstractmethod
    def begin(self, batch: AttentionBatch) -> None:
        """Take the layout of the step."""

    @abstractmethod
    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [n, heads, head_dim], k and v [n, kv_heads, head_dim] -> [n, heads, head_dim]; scale head_dim ** -0.5."""
