"""Contracts of attention over a paged KV cache: the cache, what a step tells a backend, and the backend itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trifocal.kernels.pages import empty_together


@dataclass(frozen=True)
class KVCache:
    """The cache of most backends: any device's memory, and a layout that decoding reads quickly.

    Keys and values of every layer, each [num_layers, num_blocks, num_kv_heads, block_size, head_dim].

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


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """How the tokens of a layer attend to those before them.

    window: a token sees itself and the `window - 1` tokens before it; None: all before it.
    scale: what products of queries and keys are multiplied by; None: head_dim ** -0.5.
    softcap: scaled scores s become softcap * tanh(s / softcap); None: they stay.
    is_causal_in_media: tokens of a picture do not see those of it that come after them. False is in no backend yet.
    """

    window: int | None = None
    scale: float | None = None
    softcap: float | None = None
    is_causal_in_media: bool = True

    def scale_for(self, head_dim: int) -> float:
        """`scale`, or what it is where none is given."""
        return head_dim**-0.5 if self.scale is None else self.scale


FULL = AttentionSpec()


@dataclass(frozen=True, kw_only=True)
class KVCacheSpec:
    """What the KV cache of one rank holds, and how it is attended to: what a backend must be able to serve.

    num_kv_heads: the rank's own. dtype: of queries, and of keys and values as they come. cache_dtype: of those that are
    kept. layers: the ways in which layers attend.
    """

    num_layers: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    dtype: torch.dtype
    cache_dtype: torch.dtype
    layers: frozenset[AttentionSpec] = frozenset({FULL})


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

    cache: Any  # what `allocate` gave; it has a `block_size`

    @classmethod
    def validate_configuration(cls, spec: KVCacheSpec) -> list[str]:
        """Why this backend cannot serve a cache of this kind, a reason an item; nothing where it can. vLLM's name."""
        del spec
        return []

    @classmethod
    def allocate(cls, spec: KVCacheSpec, num_blocks: int, device: torch.device) -> Any:
        """An uninitialised cache of so many blocks in the layout of this backend."""
        shape = (spec.num_layers, num_blocks, spec.num_kv_heads, spec.block_size, spec.head_dim)
        return KVCache.allocate(shape, dtype=spec.cache_dtype, device=device)

    @classmethod
    def bytes_per_block(cls, spec: KVCacheSpec) -> int:
        """What one block takes in all layers."""
        per_head = KVCache.bytes_per_head(spec.head_dim, spec.cache_dtype)
        return spec.num_layers * spec.num_kv_heads * spec.block_size * per_head

    def __init__(self, cache: Any) -> None:
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
    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec = FULL) -> Tensor:
        """q [n, heads, head_dim], k and v [n, kv_heads, head_dim] -> [n, heads, head_dim]; `spec` is the layer's."""
