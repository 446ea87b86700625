"""The CPU's kernels against plain torch, for every instruction set of this machine."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.kernels import isa
from trifocal.kernels.base import TORCH
from trifocal.kernels.cpu.ops import MAX_LINEAR_ROWS, CpuKernels

HALF, FULL = torch.bfloat16, torch.float32


@pytest.fixture(scope="module", params=isa.NAMES)
def kernels(request: pytest.FixtureRequest) -> CpuKernels:
    return CpuKernels(isa.library(request.param))


@pytest.fixture(autouse=True, params=[1, 3])
def threads(request: pytest.FixtureRequest) -> None:
    torch.set_num_threads(request.param)
    request.addfinalizer(lambda: torch.set_num_threads(1))


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


@pytest.mark.parametrize("size", [8, 64, 520, 896, 1032, 4864])
@pytest.mark.parametrize("features", [1, 15, 16, 33, 500])
def test_linear(kernels: CpuKernels, size: int, features: int) -> None:
    weight, bias = normal(features, size, seed=1) / size**0.5, normal(features, seed=2)
    for rows in (*range(1, 24), 32, 41, MAX_LINEAR_ROWS, MAX_LINEAR_ROWS + 1):
        x = normal(rows, size, seed=rows)
        for b in (None, bias):
            assert_rounded_alike(kernels.linear(x, weight, b), TORCH.linear(x, weight, b))


@pytest.mark.parametrize("size", [200, 520, 1024, 1032, 2048])
def test_a_token_gets_the_same_from_decoding_and_prefill(kernels: CpuKernels, size: int) -> None:
    """Bit for bit among few tokens, whatever the instruction set; and with oneDNN's product for many if it has BF16."""
    weight, bias = normal(77, size, seed=1) / size**0.5, normal(77, seed=2)
    x = normal(MAX_LINEAR_ROWS + 8, size, seed=3)
    many = kernels.linear(x, weight, bias)
    few = [kernels.linear(part, weight, bias) for part in torch.split(x, [16, 17, len(x) - 33])]
    single = [kernels.linear(row, weight, bias) for row in x]
    assert torch.equal(torch.cat(few), torch.stack(single))
    if kernels.name == "avx512_bf16":
        assert torch.equal(torch.cat(few), many)


def test_linear_of_what_it_does_not_cover(kernels: CpuKernels) -> None:
    """Other types, inner sizes that are no multiple of 8, no rows: torch's result, exactly."""
    for dtype, size, rows in ((FULL, 64, 3), (torch.float16, 64, 3), (HALF, 12, 3), (HALF, 64, 0)):
        x, weight = normal(rows, size, dtype=dtype), normal(5, size, dtype=dtype, seed=1)
        assert torch.equal(kernels.linear(x, weight, None), TORCH.linear(x, weight, None))


def test_linear_keeps_leading_dimensions_and_takes_strided_rows(kernels: CpuKernels) -> None:
    weight = normal(24, 64, seed=1)
    x = normal(2, 3, 64)
    assert torch.equal(kernels.linear(x, weight, None), kernels.linear(x.view(6, 64), weight, None).view(2, 3, 24))
    wide = normal(4, 128)
    assert torch.equal(kernels.linear(wide[:, 64:], weight, None), kernels.linear(wide[:, 64:].clone(), weight, None))


@pytest.mark.parametrize("dtype", [HALF, FULL])
@pytest.mark.parametrize("size", [7, 16, 64, 80, 896, 1001])
@pytest.mark.parametrize("rows", [0, 1, 5, 64])
def test_norms(kernels: CpuKernels, rows: int, size: int, dtype: torch.dtype) -> None:
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


@pytest.mark.parametrize("dtype", [HALF, FULL])
@pytest.mark.parametrize("size", [3, 16, 100, 4864])
@pytest.mark.parametrize("rows", [0, 1, 17])
def test_silu_and_mul(kernels: CpuKernels, rows: int, size: int, dtype: torch.dtype) -> None:
    x = normal(rows, 2 * size, dtype=dtype) * 4
    assert_rounded_alike(kernels.silu_and_mul(x), TORCH.silu_and_mul(x))


def test_silu_of_extremes(kernels: CpuKernels) -> None:
    gates = torch.tensor([0.0, -0.0, 100.0, -100.0, 3e38, -3e38, float("inf"), float("nan")])
    x = torch.cat([gates, torch.ones(8)])[None]
    torch.testing.assert_close(kernels.silu_and_mul(x), TORCH.silu_and_mul(x), rtol=1e-6, atol=1e-35, equal_nan=True)


@pytest.mark.parametrize("dtype", [HALF, FULL])
@pytest.mark.parametrize("size", [16, 32, 64, 80, 96, 128])
@pytest.mark.parametrize("rows", [0, 1, 9])
def test_rotate(kernels: CpuKernels, rows: int, size: int, dtype: torch.dtype) -> None:
    angles = normal(rows, 1, size // 2, dtype=FULL, seed=1)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    x = normal(rows, 11, size, dtype=dtype)
    for part in (x, x[:, :7], x.transpose(0, 1).contiguous().transpose(0, 1)):
        assert_rounded_alike(kernels.rotate(part, cos, sin), TORCH.rotate(part, cos, sin))


def test_not_a_number_is_seen(kernels: CpuKernels) -> None:
    """What a broken model computes must come out as it would from torch: the sampler looks for it."""
    x, weight = normal(2, 64), normal(20, 64, seed=1)
    x[1, 5] = float("nan")
    y = kernels.linear(x, weight, None)
    assert y[1].isnan().all() and y[0].isfinite().all()
    assert kernels.rms_norm(x, weight[0], 1e-6)[1].isnan().all()
    assert kernels.silu_and_mul(x)[1, 5].isnan()
