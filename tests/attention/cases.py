"""Steps of sequences with random histories, over a cache whose unwritten part is NaN, and a plain loop to compare."""

from __future__ import annotations

import torch
from torch import Tensor

from trifocal.attention.base import FULL, AttentionBackend, AttentionBatch, AttentionSpec, KVCache

STEPS = [  # (context lengths, query lengths)
    ([20], [20]),  # a whole prompt
    ([37], [12]),  # a later chunk
    ([600], [590]),  # a chunk of several masks
    ([1], [1]),  # a first token alone
    ([33], [1]),  # decoding
    ([33, 7, 500, 34, 900], [1, 1, 1, 1, 1]),  # decoding, in groups
    ([40, 18, 60, 25], [1, 18, 1, 9]),  # all at once
]
SPECS = [
    *(AttentionSpec(window=window) for window in (1, 16, 63, 200, 513)),
    AttentionSpec(window=5000, scale=0.5),
    AttentionSpec(softcap=2.0),
    AttentionSpec(window=30, scale=0.3, softcap=1.5),
]


class Case:
    """Keys and values [context, kv_heads, size] of each sequence, and where they lie in a cache of two layers."""

    def __init__(
        self, contexts: list[int], query_lens: list[int], *, heads: int = 4, kv_heads: int = 2, size: int = 8,
        block_size: int = 16, dtype: torch.dtype = torch.float32, cache_dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        generator = torch.Generator().manual_seed(sum(contexts))

        def normal(tokens: int, heads: int) -> Tensor:
            return torch.randn(tokens, heads, size, generator=generator).to(dtype)

        blocks = [-(-context // block_size) for context in contexts]
        shape = (2, sum(blocks) + 3, kv_heads, block_size, size)
        self.cache = KVCache.allocate(shape, dtype=cache_dtype or dtype, device=torch.device("cpu"))
        for kept in (self.cache.keys, self.cache.values, self.cache.key_scales, self.cache.value_scales):
            if kept is not None:
                kept.fill_(float("nan") if kept.is_floating_point() else 99)
        self.keys = [normal(context, kv_heads) for context in contexts]
        self.values = [normal(context, kv_heads) for context in contexts]
        self.queries = [normal(length, heads) for length in query_lens]
        free = torch.randperm(shape[1], generator=generator).tolist()
        tables = torch.zeros(len(contexts), max(blocks), dtype=torch.int64)
        slots = []
        for index, (context, length) in enumerate(zip(contexts, query_lens, strict=True)):
            tables[index, : blocks[index]] = torch.tensor([free.pop() for _ in range(blocks[index])])
            where = torch.arange(context)
            where = tables[index][where // block_size] * block_size + where % block_size
            old, new = where[: context - length], where[context - length :]
            earlier = slice(context - length)
            self.cache.write(1, self.cache.rows(old), self.keys[index][earlier], self.values[index][earlier])
            slots.append(new)
        self.batch = AttentionBatch(torch.cat(slots), tables, query_lens, contexts)

    def run(self, backend: type[AttentionBackend], spec: AttentionSpec = FULL) -> list[Tensor]:
        """What each sequence gets from layer 1."""
        attention = backend(self.cache)
        attention.begin(self.batch)
        lens = self.batch.query_lens
        k = torch.cat([keys[len(keys) - n :] for keys, n in zip(self.keys, lens, strict=True)])
        v = torch.cat([values[len(values) - n :] for values, n in zip(self.values, lens, strict=True)])
        return list(torch.split(attention(1, torch.cat(self.queries), k, v, spec), lens))

    def expected(self, spec: AttentionSpec = FULL) -> list[Tensor]:
        """The same in float32, without a cache; rounded as an int8 one rounds."""
        rounded = to_int8_and_back if self.cache.keys.dtype == torch.int8 else torch.Tensor.float
        return [
            _plain(q.float(), rounded(k), rounded(v), spec)
            for q, k, v in zip(self.queries, self.keys, self.values, strict=True)
        ]


def to_int8_and_back(x: Tensor) -> Tensor:
    """Each vector as whole numbers of 1/127 of its largest element."""
    scale = x.float().abs().amax(-1, keepdim=True) / 127
    return (x.float() / scale).round() * scale


def _plain(q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec) -> Tensor:
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) * (q.shape[2] ** -0.5 if spec.scale is None else spec.scale)
    if spec.softcap is not None:
        scores = spec.softcap * torch.tanh(scores / spec.softcap)
    behind = torch.arange(len(k) - len(q), len(k))[:, None] - torch.arange(len(k))  # how many tokens a key lies behind
    hidden = (behind < 0) | (behind >= (spec.window or len(k)))
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, float("-inf")).softmax(-1), v)
