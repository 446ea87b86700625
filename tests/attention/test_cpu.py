"""The CPU's backend against a plain loop and the reference, for every instruction set of this machine."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import pytest
import torch

from tests.attention.cases import SPECS, STEPS, Case
from tests.kernels import isa
from tests.kernels.isa import Grid
from tests.logged import messages
from trifocal.attention import cpu
from trifocal.attention.base import FULL, AttentionSpec, KVCacheSpec
from trifocal.attention.cpu import CpuAttention
from trifocal.attention.reference import ReferenceAttention
from trifocal.attention.registry import ATTENTION, choose_backend

DTYPES = {torch.float32: 2e-5, torch.bfloat16: 1e-2}
CACHES = [None, torch.int8]  # None: the type of q, k and v
MORE_STEPS = [
    ([512], [1]),  # exactly one stretch
    ([513], [1]),  # and one token more
    ([1600, 64, 65, 1], [1, 1, 1, 1]),  # several stretches, whole tiles
    ([700, 1100], [200, 3]),  # chunks late in a context, the second one small
    ([5], [0]),  # nothing to do
]


@pytest.fixture(autouse=True, params=isa.GRIDS)
def grid(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Grid]:
    """The whole grid is on three threads, else there is one."""
    chosen: Grid = request.param
    library = isa.library(chosen.name)
    monkeypatch.setattr(cpu, "load", lambda: library)
    torch.set_num_threads(3 if chosen.extent == "whole" else 1)
    yield chosen
    torch.set_num_threads(1)


def assert_as_expected(case: Case) -> None:
    dtype = case.queries[0].dtype
    for ours, expected in zip(case.run(CpuAttention), case.expected(), strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.float(), expected, rtol=DTYPES[dtype], atol=DTYPES[dtype])


def test_against_a_plain_loop(grid: Grid) -> None:
    every = list(product([1, 2, 4], [16, 128], DTYPES))
    few = [(1, 128, torch.bfloat16), (2, 16, torch.float32), (4, 16, torch.bfloat16), (4, 128, torch.float32)]
    for kv_heads, block_size, dtype in grid.of(whole=every, edges=few[:2], usual=few):
        for contexts, query_lens in STEPS + MORE_STEPS:
            assert_as_expected(Case(contexts, query_lens, kv_heads=kv_heads, block_size=block_size, dtype=dtype))


def test_windows_scales_and_soft_caps(grid: Grid) -> None:
    """Windows by the kernel, soft caps by the reference; also where a window begins within tiles and stretches."""
    few = [(None, torch.bfloat16), (torch.int8, torch.float32)]
    kinds = grid.of(whole=list(product(CACHES, DTYPES)), edges=few)
    for (contexts, query_lens), (cache_dtype, dtype) in product((*STEPS[2:], *MORE_STEPS[2:4]), kinds):
        case = Case(contexts, query_lens, size=32, dtype=dtype, cache_dtype=cache_dtype)
        for spec in SPECS:
            for ours, expected in zip(case.run(CpuAttention, spec), case.expected(spec), strict=True):
                torch.testing.assert_close(
                    ours.float(), expected, rtol=DTYPES[dtype], atol=2 * DTYPES[dtype],
                    msg=f"{contexts} {query_lens} {spec}",
                )  # fmt: skip


def test_head_sizes_and_groups(grid: Grid) -> None:
    sizes = grid.of(whole=[8, 24, 32, 64, 72, 80, 96, 128, 256], edges=[8, 24, 80, 256])
    for group, size, dtype in product(grid.of(whole=[1, 3, 7, 20], edges=[1, 7], usual=[1, 7, 20]), sizes, DTYPES):
        assert_as_expected(Case([70, 600], [9, 1], heads=2 * group, size=size, dtype=dtype))


def test_random_steps_against_the_reference(grid: Grid) -> None:
    """Decoding, chunks and whole prompts in one step, contexts of 1 to 9000 tokens; what is written is the same."""
    for size, cache_dtype, dtype in product(
        grid.of(whole=[32, 64, 80, 96, 128], edges=[80], usual=[32, 80, 128]), CACHES, DTYPES
    ):
        chance = random.Random(size)
        for _ in range(grid.of(whole=3, edges=1)):
            longest = grid.of(whole=9000, edges=2000, usual=3000)
            contexts = [int(longest ** chance.random()) for _ in range(chance.randint(1, 5))]
            query_lens = [min(context, chance.choice([1, 1, 2, 17, 130, context])) for context in contexts]
            group, block_size = chance.choice([1, 3, 5, 7]), chance.choice([16, 32, 64, 128])
            ours, theirs = (
                Case(contexts, query_lens, heads=2 * group, size=size, block_size=block_size, dtype=dtype,
                     cache_dtype=cache_dtype)
                for _ in range(2)
            )  # fmt: skip
            for one, other in zip(ours.run(CpuAttention), theirs.run(ReferenceAttention), strict=True):
                torch.testing.assert_close(one, other, rtol=DTYPES[dtype], atol=DTYPES[dtype])
            assert_same_cache(ours, theirs)


def test_int8_against_a_plain_loop() -> None:
    for (contexts, query_lens), dtype in product(STEPS + MORE_STEPS, DTYPES):
        assert_as_expected(Case(contexts, query_lens, size=32, dtype=dtype, cache_dtype=torch.int8))


def test_a_token_gets_the_same_however_its_prompt_is_cut(grid: Grid) -> None:
    """Bit for bit: in one piece, in chunks, token by token, beside others, on other numbers of threads."""
    length = 1200
    few = [(1, None, torch.bfloat16), (7, torch.int8, torch.bfloat16), (2, None, torch.float32)]
    usual = [*few, (7, None, torch.bfloat16), (7, torch.int8, torch.float32)]
    for group, cache_dtype, dtype in grid.of(whole=list(product([1, 2, 7], CACHES, DTYPES)), edges=few, usual=usual):
        part = Case([length], [length], heads=2 * group, size=48, dtype=dtype, cache_dtype=cache_dtype)
        (queries,), (keys,), (values,), slots = part.queries, part.keys, part.values, part.batch.slots
        cuts = ((length, 1), (513, 1), (512, 512), (1025, 3), (700, 211), (64, 64), (1, 1))
        whole = part.batch
        for spec in (FULL, AttentionSpec(window=600)):
            part.batch, part.queries, part.keys, part.values = whole, [queries], [keys], [values]
            expected = part.run(CpuAttention, spec)[0]  # and fills the cache
            for (end, count), threads in product(cuts, (1, 3)):
                torch.set_num_threads(threads)
                part.batch = type(whole)(slots[end - count : end], whole.block_tables, [count], [end])
                part.queries, part.keys, part.values = [queries[end - count : end]], [keys[:end]], [values[:end]]
                assert torch.equal(part.run(CpuAttention, spec)[0], expected[end - count : end]), (end, count, spec)


def test_reads_what_another_sequence_writes_in_the_same_step() -> None:
    case = Case([20, 20], [20, 4], block_size=16)
    case.batch.block_tables[1, 0] = case.batch.block_tables[0, 0]
    case.keys[1][:16], case.values[1][:16] = case.keys[0][:16], case.values[0][:16]
    torch.testing.assert_close(case.run(CpuAttention)[1], case.expected()[1], rtol=1e-4, atol=1e-5)


def assert_same_cache(ours: Case, theirs: Case) -> None:
    for name in ("keys", "values", "key_scales", "value_scales"):
        one, other = getattr(ours.cache, name), getattr(theirs.cache, name)
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def test_writes_what_the_reference_writes() -> None:
    for cache in CACHES:
        ours, theirs = (Case([70, 33], [70, 1], size=16, dtype=torch.bfloat16, cache_dtype=cache) for _ in range(2))
        for case in (ours, theirs):
            case.keys[0][60] = 0  # nothing to scale by
        ours.run(CpuAttention)
        theirs.run(ReferenceAttention)
        assert_same_cache(ours, theirs)


def test_what_is_not_a_number_is_seen() -> None:
    """By all that attend to it: the sampler looks for it, and must not be told a number."""
    for backend, cache_dtype, bad in product([CpuAttention, ReferenceAttention], CACHES, [float("nan"), float("inf")]):
        case = Case([20], [20], size=16, dtype=torch.bfloat16, cache_dtype=cache_dtype)
        case.values[0][7, 1, 3] = bad
        out = case.run(backend)[0]
        assert not out[7:, 2:, 3].isfinite().any() and out[:, :2].isfinite().all()


def test_parts_of_one_product_are_taken_as_they_lie() -> None:
    """q, k and v are views of one qkv tensor in a model."""
    case = Case([30], [30], size=16)
    qkv = torch.cat([case.queries[0], case.keys[0], case.values[0]], dim=1)
    attention = CpuAttention(case.cache)
    attention.begin(case.batch)
    out = attention(1, *torch.split(qkv, [4, 2, 2], dim=1))
    torch.testing.assert_close(out, case.expected()[0], rtol=1e-4, atol=1e-5)


def test_caches_that_the_kernel_cannot_read_go_to_the_reference(caplog: pytest.LogCaptureFixture) -> None:
    """Whose worker asks first takes the reference at once, and its log says why."""
    caplog.set_level("INFO")
    for dtype, size, cache_dtype, reason in (
        (torch.float16, 32, None, "it computes in bfloat16 and float32, not in float16"),
        (torch.float16, 32, torch.int8, "it computes in bfloat16 and float32, not in float16"),
        (torch.float32, 6, None, "a cached head of 6 float32 is no multiple of 16 bytes"),
        (torch.bfloat16, 12, None, "a cached head of 12 bfloat16 is no multiple of 16 bytes"),
        (torch.bfloat16, 24, torch.int8, "a cached head of 24 int8 is no multiple of 16 bytes"),
    ):
        assert choose_backend("cpu", cache_spec(dtype, size, cache_dtype)) is ReferenceAttention
        said = f"attention backend cpu is not used: {reason}; reference serves instead"
        assert messages(caplog, "INFO").pop() == said
        ours, theirs = (Case([40, 9], [12, 1], size=size, dtype=dtype, cache_dtype=cache_dtype) for _ in range(2))
        for one, other in zip(ours.run(CpuAttention), theirs.run(ReferenceAttention), strict=True):
            assert torch.equal(one, other)


def test_many_query_heads_of_one_kv_head() -> None:
    for heads in (65, 300):  # 300: more than one packing of keys serves
        assert_as_expected(Case([70, 9], [2, 1], heads=heads, kv_heads=1))


def cache_spec(dtype: torch.dtype, size: int, cache_dtype: torch.dtype | None = None) -> KVCacheSpec:
    return KVCacheSpec(
        num_layers=2, num_kv_heads=3, head_dim=size, block_size=16, dtype=dtype, cache_dtype=cache_dtype or dtype
    )


def test_what_the_kernel_can_read_is_served_by_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    for dtype, cache_dtype in ((torch.float32, None), (torch.bfloat16, None), (torch.bfloat16, torch.int8)):
        spec = cache_spec(dtype, 16, cache_dtype)
        assert choose_backend("cpu", spec) is CpuAttention and messages(caplog, "INFO") == []
        cache = CpuAttention.allocate(spec, 5, torch.device("cpu"))
        assert cache.keys.shape == (2, 5, 3, 16, 16) and cache.keys.dtype == spec.cache_dtype
        kept = (cache.keys, cache.values, cache.key_scales, cache.value_scales)
        total = sum(each.nbytes for each in kept if each is not None)
        assert 5 * CpuAttention.bytes_per_block(spec) == total
    capped = replace(cache_spec(torch.float32, 16), layers=frozenset({FULL, AttentionSpec(window=8, softcap=30.0)}))
    assert CpuAttention.validate_configuration(capped) == ["it has no softcap of scores"]
    wrong = replace(cache_spec(torch.float32, 16), cache_dtype=torch.bfloat16)
    assert CpuAttention.validate_configuration(wrong) == [
        "with float32 it reads a cache of that type or int8, not bfloat16"
    ]


def test_no_kernels_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "load", lambda: None)
    assert choose_backend("cpu", cache_spec(torch.float32, 16)) is ReferenceAttention
    one, other = Case([40], [40]), Case([40], [40])
    assert torch.equal(one.run(CpuAttention)[0], other.run(ReferenceAttention)[0])


def test_registry() -> None:
    assert ATTENTION.get("cpu") is CpuAttention
