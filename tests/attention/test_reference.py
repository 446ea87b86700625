"""The reference backend against a plain loop, over a cache whose unwritten part is NaN."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trifocal.attention.base import AttentionBatch, KVCache
from trifocal.attention.reference import ReferenceAttention, _grouped
from trifocal.attention.registry import ATTENTION
from trifocal.types import ConfigError

HEADS, SIZE = 4, 8


class Case:
    """Sequences with random histories: keys and values [context, kv_heads, SIZE] of each, and where they lie."""

    def __init__(self, contexts: list[int], query_lens: list[int], kv_heads: int, block_size: int) -> None:
        generator = torch.Generator().manual_seed(sum(contexts))
        blocks = [-(-context // block_size) for context in contexts]
        shape = (2, sum(blocks) + 3, block_size, kv_heads, SIZE)
        self.cache = KVCache.allocate(shape, dtype=torch.float32, device=torch.device("cpu"))
        self.cache.keys.fill_(float("nan"))
        self.cache.values.fill_(float("nan"))
        self.keys = [torch.randn(context, kv_heads, SIZE, generator=generator) for context in contexts]
        self.values = [torch.randn(context, kv_heads, SIZE, generator=generator) for context in contexts]
        self.queries = [torch.randn(length, HEADS, SIZE, generator=generator) for length in query_lens]
        free = torch.randperm(shape[1], generator=generator).tolist()
        tables = torch.zeros(len(contexts), max(blocks), dtype=torch.int64)
        slots = []
        for index, (context, length) in enumerate(zip(contexts, query_lens, strict=True)):
            tables[index, : blocks[index]] = torch.tensor([free.pop() for _ in range(blocks[index])])
            where = torch.arange(context)
            where = tables[index][where // block_size] * block_size + where % block_size
            old, new = where[: context - length], where[context - length :]
            self.cache.keys[1].flatten(0, 1)[old] = self.keys[index][: context - length]
            self.cache.values[1].flatten(0, 1)[old] = self.values[index][: context - length]
            slots.append(new)
        self.batch = AttentionBatch(torch.cat(slots), tables, query_lens, contexts)

    def run(self) -> list[Tensor]:
        backend = ReferenceAttention(self.cache)
        backend.begin(self.batch)
        lens = self.batch.query_lens
        k = torch.cat([keys[len(keys) - n :] for keys, n in zip(self.keys, lens, strict=True)])
        v = torch.cat([values[len(values) - n :] for values, n in zip(self.values, lens, strict=True)])
        return list(torch.split(backend(1, torch.cat(self.queries), k, v), lens))

    def expected(self) -> list[Tensor]:
        return [_plain(q, k, v) for q, k, v in zip(self.queries, self.keys, self.values, strict=True)]


def _plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = (x.repeat_interleave(HEADS // x.shape[1], dim=1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) * SIZE**-0.5
    ahead = torch.ones(len(q), len(k)).triu(len(k) - len(q) + 1).bool()
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(ahead, float("-inf")).softmax(-1), v)


@pytest.mark.parametrize("block_size", [16, 128])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(
    ("contexts", "query_lens"),
    [
        ([20], [20]),  # a whole prompt
        ([37], [12]),  # a later chunk
        ([600], [590]),  # a chunk of several masks
        ([1], [1]),  # a first token alone
        ([33], [1]),  # decoding
        ([33, 7, 500, 34, 900], [1, 1, 1, 1, 1]),  # decoding, in groups
        ([40, 18, 60, 25], [1, 18, 1, 9]),  # all at once
    ],
)
def test_against_a_plain_loop(contexts: list[int], query_lens: list[int], kv_heads: int, block_size: int) -> None:
    case = Case(contexts, query_lens, kv_heads, block_size)
    for ours, expected in zip(case.run(), case.expected(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_reads_what_another_sequence_writes_in_the_same_step() -> None:
    """Two sequences share their first block; the first one fills it in this very step."""
    case = Case([20, 20], [20, 4], kv_heads=2, block_size=16)
    case.batch.block_tables[1, 0] = case.batch.block_tables[0, 0]
    case.keys[1][:16], case.values[1][:16] = case.keys[0][:16], case.values[0][:16]
    torch.testing.assert_close(case.run()[1], case.expected()[1], rtol=1e-4, atol=1e-5)


def test_other_layers_are_untouched() -> None:
    case = Case([5], [5], kv_heads=2, block_size=16)
    case.run()
    assert case.cache.keys[0].isnan().all() and not case.cache.keys[1].isnan().all()


def test_padding_is_bounded() -> None:
    decodes = sorted((context, index, index) for index, context in enumerate([5, 30, 4000, 4100, 9000, 40, 4090]))
    groups = [[item[0] for item in group] for group in _grouped(decodes)]
    assert groups == [[5, 30, 40], [4000, 4090, 4100], [9000]]


def test_registry() -> None:
    assert ATTENTION.get("reference") is ReferenceAttention
    with pytest.raises(ConfigError, match="reference"):
        ATTENTION.get("nonsense")
