"""The CPU's backend against a plain loop and the reference, for every instruction set of this machine."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from tests.attention.cases import SPECS, STEPS, Case
from tests.kernels import isa
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
@pytest.mark.parametrize("cache_dtype", CACHES)
def test_windows_scales_and_soft_caps(cache_dtype: torch.dtype | None, dtype: torch.dtype) -> None:
    """Windows by the kernel, soft caps by the reference; also where a window begins within tiles and stretches."""
    for contexts, query_lens in (*STEPS[2:], *MORE_STEPS[2:4]):
        case = Case(contexts, query_lens, size=32, dtype=dtype, cache_dtype=cache_dtype)
        for spec in SPECS:
            for ours, expected in zip(case.run(CpuAttention, spec), case.expected(spec), strict=True):
                torch.testing.assert_close(
                    ours.float(), expected, rtol=DTYPES[dtype], atol=2 * DTYPES[dtype],
                    msg=f"{contexts} {query_lens} {spec}",
                )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [8, 24, 32, 64, 72, 80, 96, 128, 256])
@pytest.mark.parametrize("group", [1, 3, 7, 20])
def test_head_sizes_and_groups(group: int, size: int, dtype: torch.dtype) -> None:
    case = Case([70, 600], [9, 1], heads=2 * group, size=size, dtype=dtype)
    for ours, expected in zip(case.run(CpuAttention), case.expected(), strict=True):
        torch.testing.assert_close(ours.float(), expected, rtol=DTYPES[dtype], atol=DTYPES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cache_dtype", CACHES)
@pytest.mark.parametrize("size", [32, 64, 80, 96, 128])
def test_random_steps_against_the_reference(size: int, cache_dtype: torch.dtype | None, dtype: torch.dtype) -> None:
    """Decoding, chunks and whole prompts in one step, contexts of 1 to 9000 tokens; what is written is the same."""
    chance = random.Random(size)
    for _ in range(3):
        contexts = [int(9000 ** chance.random()) for _ in range(chance.randint(1, 5))]
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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("contexts", "query_lens"), STEPS + MORE_STEPS)
def test_int8_against_a_plain_loop(contexts: list[int], query_lens: list[int], dtype: torch.dtype) -> None:
    case = Case(contexts, query_lens, size=32, dtype=dtype, cache_dtype=torch.int8)
    for ours, expected in zip(case.run(CpuAttention), case.expected(), strict=True):
        torch.testing.assert_close(ours.float(), expected, rtol=DTYPES[dtype], atol=DTYPES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cache_dtype", CACHES)
@pytest.mark.parametrize("group", [1, 2, 7])
def test_a_token_gets_the_same_however_its_prompt_is_cut(
    group: int, cache_dtype: torch.dtype | None, dtype: torch.dtype
) -> None:
    """Bit for bit: in one piece, in chunks, token by token, beside others, on other numbers of threads."""
    length = 1200

    def case() -> Case:
        return Case([length], [length], heads=2 * group, size=48, dtype=dtype, cache_dtype=cache_dtype)

    for spec in (FULL, AttentionSpec(window=600)):
        expected = case().run(CpuAttention, spec)[0]
        for end, count in ((length, 1), (513, 1), (512, 512), (1025, 3), (700, 211), (64, 64), (1, 1)):
            part = case()
            part.run(CpuAttention, spec)  # fills the cache
            part.batch = type(part.batch)(part.batch.slots[end - count : end], part.batch.block_tables, [count], [end])
            part.queries = [part.queries[0][end - count : end]]
            part.keys, part.values = [part.keys[0][:end]], [part.values[0][:end]]
            for threads in (1, 3):
                torch.set_num_threads(threads)
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


@pytest.mark.parametrize("cache_dtype", CACHES)
def test_writes_what_the_reference_writes(cache_dtype: torch.dtype | None) -> None:
    ours, theirs = (Case([70, 33], [70, 1], size=16, dtype=torch.bfloat16, cache_dtype=cache_dtype) for _ in range(2))
    for case in (ours, theirs):
        case.keys[0][60] = 0  # nothing to scale by
    ours.run(CpuAttention)
    theirs.run(ReferenceAttention)
    assert_same_cache(ours, theirs)


@pytest.mark.parametrize("backend", [CpuAttention, ReferenceAttention])
@pytest.mark.parametrize("cache_dtype", CACHES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_a_number_is_seen(
    bad: float, cache_dtype: torch.dtype | None, backend: type[CpuAttention]
) -> None:  # fmt: skip
    """By all that attend to it: the sampler looks for it, and must not be told a number."""
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


@pytest.mark.parametrize("heads", [65, 300])  # 300: more than one packing of keys serves
def test_many_query_heads_of_one_kv_head(heads: int) -> None:
    case = Case([70, 9], [2, 1], heads=heads, kv_heads=1)
    for ours, expected in zip(case.run(CpuAttention), case.expected(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=2e-5, atol=2e-5)


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
    assert CpuAttention.validate_configuration(wrong) == ["beside float32 it reads a cache in int8, not in bfloat16"]


def test_no_kernels_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "load", lambda: None)
    assert choose_backend("cpu", cache_spec(torch.float32, 16)) is ReferenceAttention
    one, other = Case([40], [40]), Case([40], [40])
    assert torch.equal(one.run(CpuAttention)[0], other.run(ReferenceAttention)[0])


def test_registry() -> None:
    assert ATTENTION.get("cpu") is CpuAttention
