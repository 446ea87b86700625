"""The CPU's backend against a plain loop and the reference, for every instruction set of this machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.attention.cases import STEPS, Case
from tests.kernels import isa
from trifocal.attention import cpu
from trifocal.attention.cpu import CpuAttention
from trifocal.attention.reference import ReferenceAttention
from trifocal.attention.registry import ATTENTION
from trifocal.types import ConfigError

DTYPES = {torch.float32: 2e-5, torch.bfloat16: 1e-2}
MORE_STEPS = [
    ([512], [1]),  # exactly one stretch
    ([513], [1]),  # and one token more
    ([1600, 64, 65, 1], [1, 1, 1, 1]),  # several stretches, whole tiles
    ([700, 1100], [200, 3]),  # chunks late in a context, the second one small
    ([5], [0]),  # nothing to do
]


@pytest.fixture(autouse=True, params=isa.NAMES)
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    chosen = isa.library(request.param)
    monkeypatch.setattr(cpu, "load", lambda: chosen)
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block_size", [16, 128])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(("contexts", "query_lens"), STEPS + MORE_STEPS)
def test_against_a_plain_loop(
    contexts: list[int], query_lens: list[int], kv_heads: int, block_size: int, dtype: torch.dtype
) -> None:
    case = Case(contexts, query_lens, kv_heads=kv_heads, block_size=block_size, dtype=dtype)
    for ours, expected in zip(case.run(CpuAttention), case.expected(), strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.float(), expected, rtol=DTYPES[dtype], atol=DTYPES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [8, 24, 32, 64, 72, 80, 96, 128, 256])
@pytest.mark.parametrize("group", [1, 3, 7, 20])
def test_head_sizes_and_groups(group: int, size: int, dtype: torch.dtype) -> None:
    case = Case([70, 600], [9, 1], heads=2 * group, size=size, dtype=dtype)
    for ours, expected in zip(case.run(CpuAttention), case.expected(), strict=True):
        torch.testing.assert_close(ours.float(), expected, rtol=DTYPES[dtype], atol=DTYPES[dtype])


def test_a_token_gets_the_same_however_its_prompt_is_cut() -> None:
    """Bit for bit: in one piece, in chunks, token by token, beside others, on other numbers of threads."""
    length = 1200
    for dtype in DTYPES:
        whole = Case([length], [length], size=32, dtype=dtype)
        expected = whole.run(CpuAttention)[0]
        for end, count in ((length, 1), (513, 1), (512, 512), (1025, 3), (700, 211), (64, 64)):
            part = Case([length], [length], size=32, dtype=dtype)
            part.run(CpuAttention)  # fills the cache
            part.batch = type(part.batch)(
                part.batch.slots[end - count : end], part.batch.block_tables, [count], [end]
            )  # fmt: skip
            part.queries = [part.queries[0][end - count : end]]
            part.keys, part.values = [part.keys[0][:end]], [part.values[0][:end]]
            for threads in (1, 3):
                torch.set_num_threads(threads)
                assert torch.equal(part.run(CpuAttention)[0], expected[end - count : end]), (dtype, end, count)


def test_reads_what_another_sequence_writes_in_the_same_step() -> None:
    case = Case([20, 20], [20, 4], block_size=16)
    case.batch.block_tables[1, 0] = case.batch.block_tables[0, 0]
    case.keys[1][:16], case.values[1][:16] = case.keys[0][:16], case.values[0][:16]
    torch.testing.assert_close(case.run(CpuAttention)[1], case.expected()[1], rtol=1e-4, atol=1e-5)


def test_writes_what_the_reference_writes() -> None:
    ours, theirs = (Case([70, 33], [70, 1], dtype=torch.bfloat16) for _ in range(2))
    ours.run(CpuAttention)
    theirs.run(ReferenceAttention)
    for name in ("keys", "values"):
        torch.testing.assert_close(
            getattr(ours.cache, name), getattr(theirs.cache, name), rtol=0, atol=0, equal_nan=True
        )


def test_parts_of_one_product_are_taken_as_they_lie() -> None:
    """q, k and v are views of one qkv tensor in a model."""
    case = Case([30], [30], size=16)
    qkv = torch.cat([case.queries[0], case.keys[0], case.values[0]], dim=1)
    attention = CpuAttention(case.cache)
    attention.begin(case.batch)
    out = attention(1, *torch.split(qkv, [4, 2, 2], dim=1))
    torch.testing.assert_close(out, case.expected()[0], rtol=1e-4, atol=1e-5)


def test_caches_that_the_kernel_cannot_read_go_to_the_reference() -> None:
    for dtype, size in ((torch.float16, 32), (torch.float32, 6), (torch.bfloat16, 12)):
        ours, theirs = (Case([40, 9], [12, 1], size=size, dtype=dtype) for _ in range(2))
        for one, other in zip(ours.run(CpuAttention), theirs.run(ReferenceAttention), strict=True):
            assert torch.equal(one, other)


def test_too_many_query_heads_are_refused() -> None:
    with pytest.raises(ConfigError, match="64 query heads"):
        Case([3], [3], heads=65, kv_heads=1).run(CpuAttention)


def test_no_kernels_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "load", lambda: None)
    one, other = Case([40], [40]), Case([40], [40])
    assert torch.equal(one.run(CpuAttention)[0], other.run(ReferenceAttention)[0])


def test_registry() -> None:
    assert ATTENTION.get("cpu") is CpuAttention
