"""int8 and int4 linear layers against plain torch, for every instruction set of this machine."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from tests.kernels.isa import Grid
from trifocal.kernels.base import TORCH
from trifocal.kernels.blocks import all_rows, empty_blocks, int8_of_words, store_rows, words_of_int8
from trifocal.kernels.cpu.ops import CpuKernels
from trifocal.kernels.int4 import Int4Weight

HALF, FULL = torch.bfloat16, torch.float32
ROWS = (1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 23, 33, 50)  # on both sides of where kernels take another way


def normal(*shape: int, dtype: torch.dtype = HALF, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def integers(low: int, high: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


def int4_weight(outputs: int, inputs: int, group: int) -> Int4Weight:
    weight = Int4Weight.empty(outputs, inputs, group)
    scale = normal(outputs, inputs // group, dtype=FULL, seed=2).abs().add(0.1).mul(inputs**-0.5 / 5)
    weight.store(0, integers(0, 16, outputs, inputs))
    weight.store_scale(0, scale)
    weight.store_zero(0, integers(0, 16, *scale.shape, seed=1))
    return weight


def in_blocks(weight: Tensor) -> Tensor:
    blocks = empty_blocks(len(weight), -(-weight.shape[1] // 4))
    store_rows(blocks, 0, words_of_int8(weight))
    return blocks


def test_int8(grid: Grid, kernels: CpuKernels) -> None:
    """Equal integers, scaled in float32: equal but where a quotient falls on the edge between two integers."""
    shapes = [(1, 16), (5, 3), (15, 64), (33, 344), (66, 209), (500, 896)]
    for (outputs, inputs), dtype in product(
        grid.of(whole=shapes, edges=shapes[1:-1], usual=[*shapes[:-1], (100, 896)]), (HALF, FULL)
    ):
        weight = integers(-127, 128, outputs, inputs).to(torch.int8)
        blocks, scale = in_blocks(weight), normal(outputs, dtype=FULL, seed=1).abs() / 100
        assert torch.equal(int8_of_words(all_rows(blocks, outputs), inputs), weight)
        for rows in ROWS:
            x, bias = normal(rows, inputs, dtype=dtype, seed=rows), normal(outputs, dtype=dtype)
            for b in (None, bias):
                expected = TORCH.linear_int8(x, weight, scale, b)
                ours = kernels.linear_int8_blocks(x, blocks, scale, b)
                assert ours.dtype == dtype and ours.shape == expected.shape
                allowed = 2**-7 * expected.abs() + 1e-5 * expected.abs().max()
                assert ((ours - expected).abs() > allowed).float().mean() < 0.02
                assert ((ours - expected).abs() <= 0.02 * expected.abs().max()).all()


def test_int8_of_a_token_is_the_same_among_few_and_many(kernels: CpuKernels) -> None:
    for dtype in (HALF, FULL):
        weight, scale = in_blocks(integers(-127, 128, 70, 330).to(torch.int8)), normal(70, dtype=FULL).abs()
        x, bias = normal(50, 330, dtype=dtype), normal(70, dtype=dtype, seed=3)
        many = kernels.linear_int8_blocks(x, weight, scale, bias)
        few = [kernels.linear_int8_blocks(part, weight, scale, bias) for part in torch.split(x, [1, 5, 16, 28])]
        assert torch.equal(torch.cat(few), many)


def test_int8_gated(grid: Grid, kernels: CpuKernels) -> None:
    """The same as its two steps, bit for bit, however many rows."""
    for features, dtype in product(grid.of(whole=[6, 32, 96, 608], edges=[6, 96], usual=[6, 32, 96]), (HALF, FULL)):
        weight = in_blocks(integers(-127, 128, features, 330).to(torch.int8))
        scale, bias = normal(features, dtype=FULL).abs() / 99, normal(features, dtype=dtype, seed=3)
        for rows in (1, 16, 17, 33, 64, 300):
            x = normal(rows, 330, dtype=dtype, seed=rows)
            for b in (None, bias):
                whole = kernels.silu_and_mul(kernels.linear_int8_blocks(x, weight, scale, b))
                assert torch.equal(kernels.gated_linear_int8_blocks(x, weight, scale, b), whole)


def test_threads_change_nothing(kernels: CpuKernels, three_threads: None) -> None:
    """Each kernel gives on three threads what it gives on one, bit for bit, also with less work than threads."""
    weight, scale = in_blocks(integers(-127, 128, 96, 320).to(torch.int8)), normal(96, dtype=FULL).abs() / 99
    int4 = int4_weight(96, 320, 32)
    for rows in (1, 2, 3, 17, 50):
        x, results = normal(rows, 320), []
        for threads in (3, 1):
            torch.set_num_threads(threads)
            results.append(
                [
                    kernels.linear_int8_blocks(x, weight, scale, None),
                    kernels.gated_linear_int8_blocks(x, weight, scale, None),
                    kernels.linear_int4(x, int4, None),
                    kernels.linear_int4_int8(x, int4, None),
                ]
            )
        for one, other in zip(*results, strict=True):
            assert torch.equal(one, other)


def test_int8_of_extremes_is_exact(kernels: CpuKernels) -> None:
    """No sum of products saturates on its way: that of each pair and of each four are as large as they can be."""
    weight = torch.full((20, 4096), 127, dtype=torch.int8)
    weight[1::2] = -127
    for rows in (2, 40):
        y = kernels.linear_int8_blocks(
            torch.full((rows, 4096), -3.0), in_blocks(weight), torch.full((20,), 1 / 127), None
        )
        assert y[:, 0].eq(-3.0 * 4096).all() and y[:, 1].eq(3.0 * 4096).all()


def test_int8_of_nothing(kernels: CpuKernels) -> None:
    """Rows of zeros have no scale; no rows, no results."""
    weight, scale = integers(-127, 128, 20, 32).to(torch.int8), torch.ones(20)
    for compute, kept in ((kernels.linear_int8_blocks, in_blocks(weight)), (TORCH.linear_int8, weight)):
        assert compute(torch.zeros(3, 32), kept, scale, None).eq(0).all()
        assert compute(torch.zeros(0, 32, dtype=HALF), kept, scale, None).shape == (0, 20)


def test_int8_of_next_to_nothing(kernels: CpuKernels) -> None:
    """A row whose scale has no inverse counts as zeros."""
    weight, scale = in_blocks(integers(-127, 128, 20, 32).to(torch.int8)), torch.ones(20)
    for rows in (2, 20):
        assert kernels.linear_int8_blocks(torch.full((rows, 32), 1e-37), weight, scale, None).eq(0).all()


def test_int8_shows_a_broken_row(kernels: CpuKernels) -> None:
    weight, scale = integers(-127, 128, 20, 32).to(torch.int8), torch.ones(20)
    for bad in (float("nan"), float("inf")):
        for rows in (2, 20):
            x = normal(rows, 32)
            x[1, 20] = bad
            for compute, kept in ((kernels.linear_int8_blocks, in_blocks(weight)), (TORCH.linear_int8, weight)):
                y = compute(x, kept, scale, None)
                assert not y[1].isfinite().any() and y[0].isfinite().all()


def test_int4_is_packed_and_unpacked() -> None:
    """In parts that are no whole blocks, as those of a merged layer."""
    q, scale, zero = integers(0, 16, 37, 64), normal(37, 2, dtype=torch.float16), integers(0, 16, 37, 2)
    weight = Int4Weight.empty(37, 64, 32)
    for start, size in ((20, 17), (0, 5), (5, 15)):
        rows = slice(start, start + size)
        weight.store(start, q[rows])
        weight.store_scale(start, scale[rows])
        weight.store_zero(start, zero[rows])
    assert all(
        torch.equal(one.to(other.dtype), other) for one, other in zip(weight.unpack(), (q, scale, zero), strict=True)
    )


SHAPES = [(1, 128), (15, 128), (33, 384), (66, 128), (500, 896), (48, 4864)]


def test_int4(grid: Grid, kernels: CpuKernels) -> None:
    """With int8 activations as torch's, but where a quotient falls on the edge between two integers; near the exact."""
    groups, usual = grid.of(whole=[16, 32, 64, 128], edges=[16, 128]), [*SHAPES[:4], (48, 1152)]
    for (outputs, inputs), group in product(grid.of(whole=SHAPES, edges=SHAPES[1:4], usual=usual), groups):
        weight, bias = int4_weight(outputs, inputs, group), normal(outputs)
        wide = TORCH.expand_int4(weight, FULL)
        for rows in ROWS:
            x = normal(rows, inputs, seed=rows)
            of_own_scale = x.clone()
            of_own_scale[:, : inputs // 2] *= 30
            for b in (None, bias):
                ours = kernels.linear_int4(x, weight, b)
                expected = x.float() @ wide.t() + (0 if b is None else b.float())
                most = float(expected.abs().max())
                torch.testing.assert_close(ours.float(), expected, rtol=2**-8, atol=2**-8 * most)

                ours, expected = (each.linear_int4_int8(of_own_scale, weight, b).float() for each in (kernels, TORCH))
                exact = of_own_scale.float() @ wide.t() + (0 if b is None else b.float())
                most = float(exact.abs().max())
                torch.testing.assert_close(ours, expected, rtol=2**-7, atol=2**-8 * most)
                assert outputs == 1 or (ours - exact).norm() < 0.02 * exact.norm()


def test_int4_shows_a_broken_row(kernels: CpuKernels) -> None:
    weight = int4_weight(20, 64, 32)
    for bad in (float("nan"), float("inf")):
        for rows in (2, 20):
            x = normal(rows, 64)
            x[1, 20] = bad
            for each in (kernels, TORCH):
                y = each.linear_int4_int8(x, weight, None)
                assert not y[1].isfinite().any() and y[0].isfinite().all()


def test_int4_of_nothing(kernels: CpuKernels) -> None:
    """Groups of zeros have no scale; no rows, no results."""
    weight = int4_weight(20, 64, 32)
    for each in (kernels, TORCH):
        assert each.linear_int4_int8(torch.zeros(3, 64, dtype=HALF), weight, None).eq(0).all()
        assert each.linear_int4_int8(torch.zeros(0, 64, dtype=HALF), weight, None).shape == (0, 20)


def test_int4_of_a_token_is_the_same_in_any_company(kernels: CpuKernels) -> None:
    weight = int4_weight(150, 256, 64)
    x = normal(ROWS[-1], 256)
    for linear in (kernels.linear_int4, kernels.linear_int4_int8):
        alone = torch.cat([linear(row[None], weight, None) for row in x])
        for rows in ROWS:
            assert torch.equal(linear(x[:rows], weight, None), alone[:rows])


def test_int4_of_other_types_and_groups_goes_to_torch(kernels: CpuKernels) -> None:
    for group, dtype in ((8, HALF), (64, FULL), (64, torch.float16)):
        weight, x = int4_weight(21, 192, group), normal(3, 192, dtype=dtype)
        for name in ("linear_int4", "linear_int4_int8"):
            ours, expected = (getattr(each, name)(x, weight, None) for each in (kernels, TORCH))
            assert torch.equal(ours, expected)
