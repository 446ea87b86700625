"""The reference backend against a plain loop, over a cache whose unwritten part is NaN."""

from __future__ import annotations

import pytest
import torch

from tests.attention.cases import SPECS, STEPS, Case
from trifocal.attention.base import FULL, AttentionSpec
from trifocal.attention.reference import ReferenceAttention, _grouped
from trifocal.attention.registry import ATTENTION
from trifocal.errors import ConfigError


@pytest.mark.parametrize("block_size", [16, 128])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(("contexts", "query_lens"), STEPS)
def test_against_a_plain_loop(contexts: list[int], query_lens: list[int], kv_heads: int, block_size: int) -> None:
    case = Case(contexts, query_lens, kv_heads=kv_heads, block_size=block_size)
    for ours, expected in zip(case.run(ReferenceAttention), case.expected(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("contexts", "query_lens"), STEPS)
def test_int8_against_a_plain_loop(contexts: list[int], query_lens: list[int]) -> None:
    case = Case(contexts, query_lens, cache_dtype=torch.int8)
    for ours, expected in zip(case.run(ReferenceAttention), case.expected(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cache_dtype", [None, torch.int8])
def test_windows_scales_and_soft_caps(cache_dtype: torch.dtype | None) -> None:
    for contexts, query_lens in STEPS:
        case = Case(contexts, query_lens, cache_dtype=cache_dtype)
        for spec in SPECS:
            for ours, expected in zip(case.run(ReferenceAttention, spec), case.expected(spec), strict=True):
                torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5, msg=f"{contexts} {query_lens} {spec}")


def test_layers_of_a_step_may_differ() -> None:
    """What is planned for one layer's window is not used for another's."""
    case = Case([40, 18, 60, 25], [1, 18, 1, 9])
    attention = ReferenceAttention(case.cache)
    attention.begin(case.batch)
    lens = case.batch.query_lens
    k, v = (torch.cat([x[len(x) - n :] for x, n in zip(each, lens, strict=True)]) for each in (case.keys, case.values))
    for spec in (FULL, AttentionSpec(window=7), FULL, AttentionSpec(window=20)):
        got = torch.split(attention(1, torch.cat(case.queries), k, v, spec), lens)
        for ours, expected in zip(got, case.expected(spec), strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_reads_what_another_sequence_writes_in_the_same_step() -> None:
    """Two sequences share their first block; the first one fills it in this very step."""
    case = Case([20, 20], [20, 4], kv_heads=2, block_size=16)
    case.batch.block_tables[1, 0] = case.batch.block_tables[0, 0]
    case.keys[1][:16], case.values[1][:16] = case.keys[0][:16], case.values[0][:16]
    torch.testing.assert_close(case.run(ReferenceAttention)[1], case.expected()[1], rtol=1e-4, atol=1e-5)


def test_other_layers_are_untouched() -> None:
    case = Case([5], [5], kv_heads=2, block_size=16)
    case.run(ReferenceAttention)
    assert case.cache.keys[0].isnan().all() and not case.cache.keys[1].isnan().all()


def test_padding_is_bounded() -> None:
    decodes = sorted((context, index, index) for index, context in enumerate([5, 30, 4000, 4100, 9000, 40, 4090]))
    groups = [[item[0] for item in group] for group in _grouped(decodes)]
    assert groups == [[5, 30, 40], [4000, 4090, 4100], [9000]]


def test_registry() -> None:
    assert ATTENTION.get("reference") is ReferenceAttention
    with pytest.raises(ConfigError, match="reference"):
        ATTENTION.get("nonsense")
