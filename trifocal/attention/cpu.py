"""Paged causal attention by the CPU's kernel: one call a layer writes keys and values and attends."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from trifocal.attention.base import AttentionBackend, AttentionBatch, KVCache
from trifocal.attention.reference import ReferenceAttention
from trifocal.kernels.cpu.library import SUFFIX, AttentionArgs, load


class CpuAttention(AttentionBackend):
    """See `AttentionBackend`. A row's result depends on its own context alone, not on how that was cut into steps.

    Sums are float32 as the reference's, but weights are rounded to bfloat16 where the processor multiplies that type.
    Caches and queries that the kernel cannot read go to the reference.
    """

    def __init__(self, cache: KVCache) -> None:
        super().__init__(cache)
        self._reference = ReferenceAttention(cache)
        library = load()
        head_bytes = cache.keys.shape[-1] * cache.keys.dtype.itemsize
        self._functions = {}
        if library is not None and head_bytes % 16 == 0:
            prefix = "attention_int8" if cache.keys.dtype == torch.int8 else "attention"
            self._functions = {
                dtype: library.functions[f"{prefix}_{suffix}"]
                for dtype, suffix in SUFFIX.items()
                if cache.keys.dtype in (dtype, torch.int8)
            }

    def begin(self, batch: AttentionBatch) -> None:
        """Take the layout of the step."""
        self._batch = batch
        self._is_reference_ready = False
        if not self._functions:
            return
        lens = torch.tensor([batch.query_lens, batch.context_lens])
        tables = batch.block_tables.contiguous()
        self._kept = lens, tables  # addresses below point into them
        _, _, kv_heads, block_size, head_dim = self.cache.keys.shape
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
        function = self._functions.get(q.dtype)
        if function is None:
            return self._by_reference(layer, q, k, v)
        q, k, v = (_heads_together(x) for x in (q, k, v))
        out = torch.empty(q.shape, dtype=q.dtype)
        args, cache = self._args, self.cache
        args.heads = q.shape[1]
        args.q, args.k, args.v, args.out = q.data_ptr(), k.data_ptr(), v.data_ptr(), out.data_ptr()
        args.keys, args.values = cache.keys[layer].data_ptr(), cache.values[layer].data_ptr()
        if cache.key_scales is not None and cache.value_scales is not None:
            args.key_scales, args.value_scales = (
                cache.key_scales[layer].data_ptr(),
                cache.value_scales[layer].data_ptr(),
            )
        args.q_stride, args.k_stride, args.v_stride = q.stride(0), k.stride(0), v.stride(0)
        function(ctypes.byref(args))
        return out

    def _by_reference(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if not self._is_reference_ready:
            self._reference.begin(self._batch)
            self._is_reference_ready = True
        return self._reference(layer, q, k, v)


def _heads_together(x: Tensor) -> Tensor:
    """x [n, heads, d] with the heads of a token side by side; tokens may lie apart."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()
