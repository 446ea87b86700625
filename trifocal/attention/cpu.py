"""Paged causal attention by the CPU's kernel: one call a layer writes keys and values and attends."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from trifocal.attention.base import FULL, AttentionBackend, AttentionBatch, AttentionSpec, KVCache, KVCacheSpec
from trifocal.attention.reference import ReferenceAttention
from trifocal.kernels.cpu.library import SUFFIX, AttentionStep, load

_NO_WINDOW = 1 << 60  # tokens: more than any context


class CpuAttention(AttentionBackend):
    """See `AttentionBackend`. A row's result depends on its own context alone, not on how that was cut into steps.

    Sums are float32 as the reference's, but weights are rounded to bfloat16 where the processor multiplies that type.
    Caches and queries that the kernel cannot read go to the reference.
    """

    cache: KVCache

    @classmethod
    def validate_configuration(cls, spec: KVCacheSpec) -> list[str]:
        """The kernel's types, and heads that fill vectors of 16 bytes."""
        reasons = [] if load() is not None else ["the CPU kernels are not in use"]
        if spec.dtype not in SUFFIX:
            reasons.append(f"it computes in bfloat16 and float32, not in {_word(spec.dtype)}")
        elif spec.cache_dtype not in (spec.dtype, torch.int8):
            word = _word(spec.cache_dtype)
            reasons.append(f"with {_word(spec.dtype)} it reads a cache of that type or int8, not {word}")
        if spec.head_dim * spec.cache_dtype.itemsize % 16:
            reasons.append(f"a cached head of {spec.head_dim} {_word(spec.cache_dtype)} is no multiple of 16 bytes")
        if any(layer.softcap is not None for layer in spec.layers):
            reasons.append("it has no softcap of scores")
        return reasons

    def __init__(self, cache: KVCache) -> None:
        super().__init__(cache)
        self._reference = ReferenceAttention(cache)
        library = load()
        head_bytes = cache.keys.shape[-1] * cache.keys.dtype.itemsize
        self._kernels = {}
        if library is not None and head_bytes % 16 == 0:
            prefix = "attention_int8" if cache.keys.dtype == torch.int8 else "attention"
            self._kernels = {
                dtype: library.kernels[f"{prefix}_{suffix}"]
                for dtype, suffix in SUFFIX.items()
                if cache.keys.dtype in (dtype, torch.int8)
            }
        self._step = AttentionStep()  # where all recorded calls look

    @property
    def can_be_captured(self) -> bool:
        """See `AttentionBackend`: the kernel's calls read the step from a struct that stays."""
        return bool(self._kernels)

    def begin(self, batch: AttentionBatch) -> None:
        self._batch = batch
        self._is_reference_ready = False
        if not self._kernels:
            return
        lens = torch.tensor([batch.query_lens, batch.context_lens])
        tables = batch.block_tables.contiguous()
        self._kept = batch.slots, lens, tables  # addresses below point into them
        step = self._step
        step.slots, step.tables = batch.slots.data_ptr(), tables.data_ptr()
        step.query_lens, step.context_lens = lens[0].data_ptr(), lens[1].data_ptr()
        step.num_seqs, step.num_tokens, step.table_stride = len(batch.query_lens), len(batch.slots), tables.shape[1]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec = FULL) -> Tensor:
        """q [n, heads, head_dim], k and v [n, kv_heads, head_dim] -> [n, heads, head_dim]."""
        kernel = self._kernels.get(q.dtype)
        if kernel is None or spec.softcap is not None:
            return self._by_reference(layer, q, k, v, spec)
        q, k, v = (_heads_together(x) for x in (q, k, v))
        out = torch.empty(q.shape, dtype=q.dtype)
        cached = (self.cache.keys, self.cache.values, self.cache.key_scales, self.cache.value_scales)
        _, _, kv_heads, block_size, head_dim = self.cache.keys.shape
        kernel(
            ctypes.addressof(self._step), q.data_ptr(), k.data_ptr(), v.data_ptr(), out.data_ptr(),
            *(None if each is None else each.data_ptr() + layer * each.stride(0) * each.itemsize for each in cached),
            q.stride(0), k.stride(0), v.stride(0), block_size, q.shape[1], kv_heads, head_dim,
            spec.window or _NO_WINDOW, spec.scale_for(head_dim), torch.get_num_threads(),
        )  # fmt: skip
        return out

    def _by_reference(self, layer: int, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec) -> Tensor:
        if not self._is_reference_ready:
            self._reference.begin(self._batch)
            self._is_reference_ready = True
        return self._reference(layer, q, k, v, spec)


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _heads_together(x: Tensor) -> Tensor:
    """x [n, heads, d] with the heads of a token side by side; tokens may lie apart."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()
