"""Segment attention against one attention per segment."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.kernels import isa
from trifocal.attention.vision import Segments, segment_attention
from trifocal.kernels.base import TORCH, Kernels
from trifocal.kernels.cpu.ops import CpuKernels

CPU = torch.device("cpu")


@pytest.fixture(params=["torch", *isa.NAMES])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return TORCH if request.param == "torch" else CpuKernels(isa.library(request.param))


@pytest.mark.parametrize("lengths", [[12], [8, 8, 8], [8, 4, 8, 2, 4, 8], [64] * 3, [300, 1, 65, 513]])
@pytest.mark.parametrize("size", [16, 64, 72, 80])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_see_their_segment_only(lengths: list[int], size: int, dtype: torch.dtype, kernels: Kernels) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(sum(lengths), 3, 2, size, generator=generator).to(dtype).unbind(1)  # parts of one product
    ours = segment_attention(q, k, v, Segments.from_lengths(lengths, CPU), kernels)
    parts = zip(*(torch.split(x, lengths) for x in (q, k, v)), strict=True)
    expected = [
        F.scaled_dot_product_attention(*(x.float().transpose(0, 1) for x in part)).transpose(0, 1) for part in parts
    ]
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    assert ours.dtype == dtype and ours.shape == q.shape
    torch.testing.assert_close(ours.float(), torch.cat(expected), rtol=tolerance, atol=tolerance)


def test_what_the_kernels_cannot_read_goes_to_torch() -> None:
    kernels = CpuKernels(isa.library("avx2"))
    segments = Segments.from_lengths([5, 9], CPU)
    for dtype, size in ((torch.float16, 16), (torch.bfloat16, 12), (torch.float32, 6)):
        q, k, v = torch.randn(3, 14, 2, size).to(dtype).unbind(0)
        assert kernels.segment_attention(q, k, v, segments.lengths) is None
        assert torch.equal(segment_attention(q, k, v, segments, kernels), segment_attention(q, k, v, segments))


def test_heads_that_lie_apart() -> None:
    kernels = CpuKernels(isa.library("avx2"))
    q, k, v = torch.randn(3, 2, 14, 16).transpose(1, 2).unbind(0)
    segments = Segments.from_lengths([5, 9], CPU)
    ours, expected = segment_attention(q, k, v, segments, kernels), segment_attention(q, k, v, segments)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_a_row_gets_the_same_whatever_lies_beside_its_segment() -> None:
    for name in isa.NAMES:
        kernels = CpuKernels(isa.library(name))
        q, k, v = torch.randn(3, 400, 2, 64).bfloat16().unbind(0)
        alone = segment_attention(q[300:], k[300:], v[300:], Segments.from_lengths([100], CPU), kernels)
        together = segment_attention(q, k, v, Segments.from_lengths([290, 10, 100], CPU), kernels)
        assert torch.equal(alone, together[300:])
