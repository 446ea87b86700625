"""Segment attention against one attention per segment."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F

from tests.kernels import isa
from tests.kernels.isa import Grid
from trifocal.attention.vision import Segments, segment_attention
from trifocal.kernels.base import TORCH
from trifocal.kernels.cpu.ops import CpuKernels

CPU = torch.device("cpu")


LENGTHS = [[12], [8, 8, 8], [8, 4, 8, 2, 4, 8], [64] * 3, [300, 1, 65, 513]]
TORCHS = Grid("torch", "usual")


@pytest.mark.parametrize("grid", [pytest.param(TORCHS, id="torch"), *isa.GRIDS])
def test_rows_see_their_segment_only(grid: Grid) -> None:
    kernels = TORCH if grid is TORCHS else CpuKernels(isa.library(grid.name))
    sizes = grid.of(whole=[16, 64, 72, 80], edges=[16, 72])
    for lengths, size, dtype in product(LENGTHS, sizes, (torch.float32, torch.bfloat16)):
        generator = torch.Generator().manual_seed(0)
        q, k, v = torch.randn(sum(lengths), 3, 2, size, generator=generator).to(dtype).unbind(1)  # parts of one product
        parts = zip(*(torch.split(x, lengths) for x in (q, k, v)), strict=True)
        expected = [
            F.scaled_dot_product_attention(*(x.float().transpose(0, 1) for x in part)).transpose(0, 1) for part in parts
        ]
        ours = segment_attention(q, k, v, Segments.from_lengths(lengths, CPU), kernels)
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        assert ours.dtype == dtype and ours.shape == q.shape
        torch.testing.assert_close(ours.float(), torch.cat(expected), rtol=tolerance, atol=tolerance)


def test_threads_change_nothing() -> None:
    kernels = CpuKernels(isa.library("1"))
    for lengths, dtype in product(LENGTHS, (torch.float32, torch.bfloat16)):
        q, k, v = torch.randn(3, sum(lengths), 2, 64).to(dtype).unbind(0)
        outs = []
        for threads in (3, 1):
            torch.set_num_threads(threads)
            outs.append(segment_attention(q, k, v, Segments.from_lengths(lengths, CPU), kernels))
        assert torch.equal(*outs)


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
    for name in isa.usable():
        kernels = CpuKernels(isa.library(name))
        q, k, v = torch.randn(3, 400, 2, 64).bfloat16().unbind(0)
        alone = segment_attention(q[300:], k[300:], v[300:], Segments.from_lengths([100], CPU), kernels)
        together = segment_attention(q, k, v, Segments.from_lengths([290, 10, 100], CPU), kernels)
        assert torch.equal(alone, together[300:])
