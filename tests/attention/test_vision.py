"""Segment attention against one attention per segment."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from trifocal.attention.vision import Segments, segment_attention


@pytest.mark.parametrize("lengths", [[12], [8, 8, 8], [8, 4, 8, 2, 4, 8]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_see_their_segment_only(lengths: list[int], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, sum(lengths), 2, 16, generator=generator).to(dtype).unbind(0)
    ours = segment_attention(q, k, v, Segments.from_lengths(lengths, torch.device("cpu")))
    parts = zip(*(torch.split(x, lengths) for x in (q, k, v)), strict=True)
    expected = [
        F.scaled_dot_product_attention(*(x.float().transpose(0, 1) for x in part)).transpose(0, 1) for part in parts
    ]
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    assert ours.dtype == dtype and ours.shape == q.shape
    torch.testing.assert_close(ours.float(), torch.cat(expected), rtol=tolerance, atol=tolerance)
