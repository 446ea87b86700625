"""Paged causal attention by the CPU's kernel: one call a layer writes keys and values and attends."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from trifocal.attention.base import AttentionBackend, AttentionBatch, KVCache
from trifocal.attention.reference import ReferenceAttention
from trifocal.kernels.cpu.library import SUFFIX, AttentionArgs, load
from trifocal.types import ConfigError

_MAX_GROUP = 64  # query heads of a kv head


class CpuAttention(AttentionBackend):
    """See `AttentionBackend`. Sums in float32 as the reference, rounded once; a row's result depends on its own
    context alone, not on how it was cut into steps. Caches that the kernel cannot read go to the reference.
    """

    def __init__(self, cache: KVCache) -> None:
        super().__init__(cache)
        library = load()
        suffix = SUFFIX.get(cache.keys.dtype)
        head_bytes = cache.keys.shape[-1] * cache.keys.dtype.itemsize
        self._reference: ReferenceAttention | None = None
        if library is None or suffix is None or head_bytes % 16:
            self._reference = ReferenceAttention(cache)
        else:
            self._function = library.functions[f"attention_{suffix}"]

    def begin(self, batch: AttentionBatch) -> None:
        """Take the layout of the step."""
        if self._reference is not None:
            self._reference.begin(batch)
            return
        lens = torch.tensor([batch.query_lens, batch.context_lens])
        tables = batch.block_tables.contiguous()
        self._batch, self._kept = batch, (lens, tables)  # addresses below point into them
        _, _, block_size, kv_heads, head_dim = self.cache.keys.shape
        self._args = AttentionArgs(
            slots=batch.slots.data_ptr(),
            tables=tables.data_ptr(),
            query_lens=lens[0].data_ptr(),
            context_lens=lens[1].data_ptr(),
            num_seqs=len(batch.query_lens),
            num_tokens=len(batch.slots),
            table_stride=tables.shape[1],
            block_size=block_size,
            kv_heads=kv_heads,
            head_dim=head_dim,
            scale=head_dim**-0.5,
            threads=torch.get_num_threads(),
        )

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [n, heads, head_dim], k and v [n, kv_heads, head_dim] -> [n, heads, head_dim]."""
        if self._reference is not None:
            return self._reference(layer, q, k, v)
        q, k, v = (_heads_together(x) for x in (q, k, v))
        out = torch.empty(q.shape, dtype=q.dtype)
        args, keys, values = self._args, self.cache.keys[layer], self.cache.values[layer]
        args.heads = q.shape[1]
        if args.heads > _MAX_GROUP * args.kv_heads:
            raise ConfigError(f"the CPU's kernels take {_MAX_GROUP} query heads a kv head; set TRIFOCAL_CPU_KERNELS=0")
        args.q, args.k, args.v, args.out = q.data_ptr(), k.data_ptr(), v.data_ptr(), out.data_ptr()
        args.keys, args.values = keys.data_ptr(), values.data_ptr()
        args.q_stride, args.k_stride, args.v_stride = q.stride(0), k.stride(0), v.stride(0)
        self._function(ctypes.byref(args))
        return out


def _heads_together(x: Tensor) -> Tensor:
    """x [n, heads, d] with the heads of a token side by side; tokens may lie apart."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()
