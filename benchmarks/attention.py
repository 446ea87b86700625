"""How near attention comes to the memory's speed (decoding) and to the processor's (prompts, pictures), beside torch.

    python -m benchmarks.attention [--only decoding|prompts|pictures] [--seconds 0.5]

Every figure is a median, taken in turn with the others of its row. Decoding: GB/s of keys, values and their scales,
once a call, over layers that together are far larger than the cache; "memory" is a loop that only reads. Prompts and
pictures: GFLOP/s of both products over the keys that a row sees. Use the ratios: absolute figures move with the
machine's neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from benchmarks.kernels import TOTAL, Call, medians, reader, row, run
from trifocal.attention.base import AttentionBatch, KVCache
from trifocal.attention.cpu import CpuAttention
from trifocal.attention.reference import ReferenceAttention
from trifocal.attention.vision import Segments, segment_attention
from trifocal.kernels.cpu.library import Library
from trifocal.kernels.cpu.ops import CpuKernels

CPU = torch.device("cpu")
HEADS = [(14, 2, 64), (16, 2, 128)]  # query heads, kv heads, head size
CONTEXTS = [(1, 2048), (8, 2048), (8, 8192), (32, 2048)]  # sequences, tokens
PICTURES = [  # heads, head size, lengths of segments
    (16, 80, [64] * 16),  # Qwen2.5-VL, 448x448: windows
    (16, 80, [1024]),  # and its full layers
    (16, 80, [1024] * 8),  # eight pictures
    (16, 64, [1025] * 7),  # InternViT: tiles
    (16, 72, [1024] * 4),  # SigLIP: slices
]


def filled(shape: tuple[int, int, int, int, int], dtype: torch.dtype) -> KVCache:
    """A cache of random numbers."""
    cache = KVCache.allocate(shape, dtype=dtype, device=CPU)
    for kept in (cache.keys, cache.values):
        for layer in kept:
            layer.copy_(torch.randn(shape[1:]) * (1 if dtype.is_floating_point else 40))
    for scales in (cache.key_scales, cache.value_scales):
        if scales is not None:
            scales.fill_(0.025)
    return cache


def calls_on(cache: KVCache, step: AttentionBatch, heads: int) -> dict[str, Call]:
    """One layer's attention by the kernel and by the reference; in bfloat16."""
    kv_heads, size, tokens = cache.keys.shape[2], cache.keys.shape[4], len(step.slots)
    q, k = torch.randn(tokens, heads, size).bfloat16(), torch.randn(tokens, kv_heads, size).bfloat16()
    calls: dict[str, Call] = {}
    for name, backend in (("ours", CpuAttention(cache)), ("reference", ReferenceAttention(cache))):
        backend.begin(step)
        calls[name] = lambda i, backend=backend: backend(i, q, k, k)
    return calls


def decoding(library: Library, seconds: float) -> Iterable[str]:
    """One token a sequence over a paged cache."""
    read, read_bytes = reader(library)
    for heads, kv_heads, size in HEADS:
        for batch, context in CONTEXTS:
            for block, dtype in ((16, torch.bfloat16), (128, torch.bfloat16), (16, torch.int8)):
                num_bytes = batch * context * kv_heads * KVCache.bytes_per_head(size, dtype)
                layers = max(2, TOTAL // num_bytes)
                shape = (layers, batch * context // block, kv_heads, block, size)
                tables = torch.randperm(shape[1]).view(batch, -1)
                slots = tables[:, -1] * block + block - 1
                step = AttentionBatch(slots, tables, [1] * batch, [context] * batch)
                calls = calls_on(filled(shape, dtype), step, heads)
                times = medians({**calls, "memory": read}, layers, seconds)
                name = f"{heads}/{kv_heads}/{size} {batch} x {context}, block {block}, {str(dtype)[6:]}"
                yield row(name, times, num_bytes, read_bytes)


def prompts(library: Library, seconds: float) -> Iterable[str]:
    """A whole prompt, and the last 512 tokens of one."""
    for heads, kv_heads, size in HEADS:
        for dtype in (torch.bfloat16, torch.int8):
            for context, length in ((128, 128), (512, 512), (2048, 2048), (8192, 512)):
                shape = (2, context // 16, kv_heads, 16, size)
                slots = torch.arange(context - length, context)
                step = AttentionBatch(slots, torch.arange(shape[1])[None], [length], [context])
                times = medians(calls_on(filled(shape, dtype), step, heads), 2, seconds)
                seen = length * (context - length / 2)
                text = rates(times, 4 * seen * heads * size)
                yield f"{heads}/{kv_heads}/{size} {length} tokens of {context}, {str(dtype)[6:]}: GFLOP/s  {text}"


def pictures(library: Library, seconds: float) -> Iterable[str]:
    """Segments of vision towers."""
    kernels = CpuKernels(library)
    for heads, size, lengths in PICTURES:
        q, k, v = torch.randn(sum(lengths), 3, heads, size).bfloat16().unbind(1)
        segments = Segments.from_lengths(lengths, CPU)
        calls: dict[str, Call] = {
            "ours": lambda _, x=(q, k, v, segments): segment_attention(*x, kernels),
            "torch": lambda _, x=(q, k, v, segments): segment_attention(*x),
        }
        text = rates(medians(calls, 1, seconds), 4 * sum(n * n for n in lengths) * heads * size)
        yield f"{heads} heads of {size}, {len(lengths)} segments of {lengths[0]}: GFLOP/s  {text}"


def rates(times: dict[str, float], operations: float) -> str:
    """GFLOP/s of each."""
    return "  ".join(f"{name} {operations / taken / 1e9:6.0f}" for name, taken in times.items())


PARTS = {"decoding": decoding, "prompts": prompts, "pictures": pictures}


if __name__ == "__main__":
    run(PARTS, __doc__)
