"""The CPU's kernels against plain torch, for every instruction set of this machine."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from tests.kernels.isa import Grid
from trifocal.kernels.base import TORCH
from trifocal.kernels.blocks import all_rows, empty_blocks, store_rows
from trifocal.kernels.cpu.ops import CpuKernels

HALF, FULL = torch.bfloat16, torch.float32


def normal(*shape: int, dtype: torch.dtype = HALF, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_rounded_alike(ours: Tensor, expected: Tensor) -> None:
    """Equal but for the last bit, and that seldom: the two differ in the order of float32 sums at most."""
    assert ours.dtype == expected.dtype and ours.shape == expected.shape
    if ours.dtype == FULL:
        torch.testing.assert_close(ours, expected, rtol=2e-6, atol=2e-6)
        return
    torch.testing.assert_close(ours.float(), expected.float(), rtol=2**-7, atol=1e-3)
    assert (ours != expected).sum() <= 1 + 0.02 * ours.numel()


def in_blocks(weight: Tensor) -> Tensor:
    blocks = empty_blocks(len(weight), weight.shape[1] // 2)
    store_rows(blocks, 0, weight.view(torch.int32))
    return blocks


def test_linear(grid: Grid, kernels: CpuKernels) -> None:
    few, many = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 23, 33, 65), (*range(1, 24), 32, 41, 64, 65)
    for size in grid.of(whole=[6, 8, 64, 520, 896, 1030, 4864], edges=[6, 520, 1030]):
        for features in grid.of(whole=[1, 15, 16, 33, 500], edges=[15, 33], usual=[1, 15, 16, 33, 100]):
            weight, bias = normal(features, size, seed=1) / size**0.5, normal(features, seed=2)
            blocks, x = in_blocks(weight), normal(65, size, seed=3)
            for b in (None, bias):
                expected = TORCH.linear(x, weight, b)
                for rows in grid.of(whole=many, edges=few):
                    assert_rounded_alike(kernels.linear_blocks(x[:rows], blocks, features, b), expected[:rows])
            assert torch.equal(all_rows(blocks, features).view(HALF), weight)


def test_gated_linear(grid: Grid, kernels: CpuKernels) -> None:
    """The same as its two steps, bit for bit, however many rows."""
    for size in grid.of(whole=[64, 200, 896, 1030], edges=[200, 1030]):
        for features in grid.of(whole=[6, 32, 96, 608], edges=[6, 96], usual=[6, 32, 96]):
            weight, bias = in_blocks(normal(features, size, seed=1) / size**0.5), normal(features, seed=2)
            for rows in (1, 16, 17, 33, 64, 300):
                x = normal(rows, size, seed=rows)
                for b in (None, bias):
                    whole = kernels.silu_and_mul(kernels.linear_blocks(x, weight, features, b))
                    assert torch.equal(kernels.gated_linear_blocks(x, weight, features, b), whole)


def test_a_token_gets_the_same_from_decoding_and_prefill(grid: Grid, kernels: CpuKernels) -> None:
    """Bit for bit, whatever the instruction set."""
    for size in grid.of(whole=[200, 520, 1024, 1032, 2048], edges=[200, 1032]):
        weight, bias = in_blocks(normal(77, size, seed=1) / size**0.5), normal(77, seed=2)
        x = normal(72, size, seed=3)
        whole = kernels.linear_blocks(x, weight, 77, bias)
        for sizes in ([4, 5, 8, 17, 38], [1] * 72):
            parts = [kernels.linear_blocks(part, weight, 77, bias) for part in torch.split(x, sizes)]
            assert torch.equal(torch.cat(parts), whole)


def test_threads_change_nothing(kernels: CpuKernels, three_threads: None) -> None:
    """Each kernel gives on three threads what it gives on one, bit for bit, also with less work than threads."""
    weight, gated, bias = in_blocks(normal(77, 520, seed=1)), in_blocks(normal(96, 520, seed=1)), normal(77, seed=2)
    for rows in (1, 2, 3, 17, 65):
        x, cos = normal(rows, 520), normal(rows, 1, 16, dtype=FULL, seed=1)
        results = []
        for threads in (3, 1):
            torch.set_num_threads(threads)
            results.append(
                [
                    kernels.linear_blocks(x, weight, 77, bias),
                    kernels.gated_linear_blocks(x, gated, 96, None),
                    kernels.rms_norm(x, x[0], 1e-6),
                    *kernels.add_rms_norm(x, x, 0.3, x[0], 1e-6),
                    kernels.silu_and_mul(x),
                    kernels.rotate(normal(rows, 11, 32, dtype=FULL), cos, cos),
                ]
            )
        for one, other in zip(*results, strict=True):
            assert torch.equal(one, other)


def test_linear_of_what_it_does_not_cover(kernels: CpuKernels) -> None:
    """Plain weights, no rows: torch's result, exactly."""
    for dtype in (FULL, torch.float16, HALF):
        x, weight = normal(3, 64, dtype=dtype), normal(5, 64, dtype=dtype, seed=1)
        assert torch.equal(kernels.linear(x, weight, None), TORCH.linear(x, weight, None))
    assert kernels.linear_blocks(normal(0, 64), in_blocks(normal(5, 64)), 5, None).shape == (0, 5)


def test_linear_keeps_leading_dimensions_and_takes_strided_rows(kernels: CpuKernels) -> None:
    weight = in_blocks(normal(24, 64, seed=1))

    def linear(x: Tensor) -> Tensor:
        return kernels.linear_blocks(x, weight, 24, None)

    x = normal(2, 3, 64)
    assert torch.equal(linear(x), linear(x.view(6, 64)).view(2, 3, 24))
    wide = normal(4, 128)
    assert torch.equal(linear(wide[:, 64:]), linear(wide[:, 64:].clone()))


def test_norms(grid: Grid, kernels: CpuKernels) -> None:
    sizes = grid.of(whole=[7, 16, 64, 80, 896, 1001], edges=[7, 16, 1001])
    for dtype, size, rows in product((HALF, FULL), sizes, (0, 1, 5, 64)):
        x, delta = normal(rows, size, dtype=dtype), normal(rows, size, dtype=dtype, seed=1)
        weight = normal(size, dtype=dtype, seed=2)
        assert_rounded_alike(kernels.rms_norm(x, weight, 1e-6), TORCH.rms_norm(x, weight, 1e-6))
        for scale in (1.0, 0.3):
            ours, expected = (each.add_rms_norm(x, delta, scale, weight, 1e-6) for each in (kernels, TORCH))
            assert_rounded_alike(ours[0], expected[0])
            assert_rounded_alike(ours[1], expected[1])


def test_norm_of_heads_inside_a_row(kernels: CpuKernels) -> None:
    x, weight = normal(5, 12, 32)[:, 2:9], normal(32, seed=1)
    assert_rounded_alike(kernels.rms_norm(x, weight, 1e-6), TORCH.rms_norm(x, weight, 1e-6))


def test_norms_of_two_kinds_of_heads(kernels: CpuKernels) -> None:
    """As two calls do, bit for bit."""
    for dtype in (HALF, FULL):
        for rows, heads, num_first, size in (
            (0, 6, 4, 32),
            (1, 6, 4, 128),
            (9, 9, 8, 20),
            (70, 12, 6, 64),
            (3, 2, 2, 7),
        ):
            x = normal(rows, heads + 3, size, dtype=dtype)[:, :heads]
            first, other = normal(size, dtype=dtype, seed=1), normal(size, dtype=dtype, seed=2)
            got = kernels.norm_heads(x, num_first, first, other, 1e-6)
            parts = (x[:, :num_first], first), (x[:, num_first:], other)
            assert torch.equal(got, torch.cat([kernels.rms_norm(part, weight, 1e-6) for part, weight in parts], dim=1))
            assert_rounded_alike(got, TORCH.norm_heads(x, num_first, first, other, 1e-6))


def test_silu_and_mul(grid: Grid, kernels: CpuKernels) -> None:
    sizes = grid.of(whole=[3, 16, 100, 4864], edges=[3, 16, 100])
    for dtype, size, rows in product((HALF, FULL), sizes, (0, 1, 17)):
        x = normal(rows, 2 * size, dtype=dtype) * 4
        assert_rounded_alike(kernels.silu_and_mul(x), TORCH.silu_and_mul(x))


def test_silu_of_extremes(kernels: CpuKernels) -> None:
    gates = torch.tensor([0.0, -0.0, 100.0, -100.0, 3e38, -3e38, float("inf"), float("nan")])
    x = torch.cat([gates, torch.ones(8)])[None]
    torch.testing.assert_close(kernels.silu_and_mul(x), TORCH.silu_and_mul(x), rtol=1e-6, atol=1e-35, equal_nan=True)


def test_rotate(grid: Grid, kernels: CpuKernels) -> None:
    sizes = grid.of(whole=[16, 32, 64, 80, 96, 128], edges=[16, 80])
    for dtype, size, rows in product((HALF, FULL), sizes, (0, 1, 9)):
        angles = normal(rows, 1, size // 2, dtype=FULL, seed=1)
        cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
        x = normal(rows, 11, size, dtype=dtype)
        for part in (x, x[:, :7], x.transpose(0, 1).contiguous().transpose(0, 1)):
            assert_rounded_alike(kernels.rotate(part, cos, sin), TORCH.rotate(part, cos, sin))


def test_not_a_number_is_seen(kernels: CpuKernels) -> None:
    """What a broken model computes must come out as it would from torch: the sampler looks for it."""
    x, weight = normal(2, 64), normal(20, 64, seed=1)
    x[1, 5] = float("nan")
    y = kernels.linear_blocks(x, in_blocks(weight), 20, None)
    assert y[1].isnan().all() and y[0].isfinite().all()
    assert kernels.rms_norm(x, weight[0], 1e-6)[1].isnan().all()
    assert kernels.silu_and_mul(x)[1, 5].isnan()
