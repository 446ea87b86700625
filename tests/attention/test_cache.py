"""What the KV cache keeps, and how much memory that takes."""

from __future__ import annotations

import pytest
import torch

from tests.attention.cases import to_int8_and_back
from trifocal.attention.base import KVCache

LAYERS, BLOCKS, HEADS, BLOCK, SIZE = SHAPE = (2, 5, 3, 16, 8)


def allocate(dtype: torch.dtype) -> KVCache:
    return KVCache.allocate(SHAPE, dtype=dtype, device=torch.device("cpu"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_the_size_of_a_token_counts_everything(dtype: torch.dtype) -> None:
    cache = allocate(dtype)
    parts = (cache.keys, cache.values, cache.key_scales, cache.value_scales)
    total = sum(part.nbytes for part in parts if part is not None)
    assert total == LAYERS * BLOCKS * BLOCK * HEADS * KVCache.bytes_per_head(SIZE, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_what_is_written_is_read(dtype: torch.dtype) -> None:
    """In any order of slots; int8 is off by half of a 127th of a vector's largest element at most."""
    cache, generator = allocate(dtype), torch.Generator().manual_seed(0)
    slots = torch.randperm(BLOCKS * BLOCK, generator=generator)[:40]
    k, v = torch.randn(2, 40, HEADS, SIZE, generator=generator).bfloat16().unbind(0)
    k[3, 1] = 0
    rows = cache.rows(slots)
    cache.write(1, rows, *((k, v) if dtype != torch.float32 else (k.float(), v.float())))
    for found, wanted in zip(cache.read(1, rows), (k.float(), v.float()), strict=True):
        assert found.shape == (40, HEADS, SIZE) and found.dtype == torch.float32
        if dtype == torch.int8:
            most = wanted.abs().amax(-1, keepdim=True)
            assert ((found - wanted).abs() <= most / 127 / 2 * 1.0001).all()
            assert torch.equal(found, to_int8_and_back(wanted).nan_to_num())
        else:
            assert torch.equal(found, wanted)


def test_a_head_s_tokens_of_a_block_lie_side_by_side() -> None:
    cache = allocate(torch.float32)
    block, offset = 3, 5
    cache.write(0, cache.rows(torch.tensor([block * BLOCK + offset])), *torch.ones(2, 1, HEADS, SIZE))
    assert (cache.keys[0, block, :, offset] == 1).all() and (cache.values[0, block, :, offset] == 1).all()
