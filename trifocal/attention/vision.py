"""Attention of vision towers: not causal, over many short segments of one packed sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from trifocal.kernels.base import TORCH, Kernels


@dataclass(frozen=True)
class _Group:
    """Segments of equal length. `rows` int64 [count * length] picks their rows; `None` where they are all rows."""

    count: int
    length: int
    rows: Tensor | None


@dataclass(frozen=True)
class Segments:
    """How a packed sequence is cut; made once and used by every layer that is cut this way."""

    lengths: Tensor  # int64 [segments], on the CPU
    groups: tuple[_Group, ...]

    @classmethod
    def from_lengths(cls, lengths: Sequence[int], device: torch.device) -> Segments:
        """`lengths` of consecutive segments; equal ones become one batch, however they are mixed with others."""
        sizes = torch.tensor(lengths, dtype=torch.int64)
        starts = sizes.cumsum(0) - sizes
        groups = []
        for length in sorted(set(lengths)):
            chosen = starts[sizes == length]
            everything = len(chosen) == len(lengths)
            rows = None if everything else (chosen[:, None] + torch.arange(length)).flatten().to(device)
            groups.append(_Group(len(chosen), length, rows))
        return cls(sizes, tuple(groups))


def segment_attention(q: Tensor, k: Tensor, v: Tensor, segments: Segments, kernels: Kernels = TORCH) -> Tensor:
    """q, k, v [n, heads, head_dim] -> [n, heads, head_dim]; each row attends to its segment, softmax in float32."""
    by_kernel = kernels.segment_attention(q, k, v, segments.lengths)
    if by_kernel is not None:
        return by_kernel
    if len(segments.groups) == 1:
        return _batch(q, k, v, segments.groups[0])
    out = torch.empty_like(q)
    for group in segments.groups:
        rows = group.rows
        assert rows is not None, "only a single group covers all rows"
        chosen = _batch(q.index_select(0, rows), k.index_select(0, rows), v.index_select(0, rows), group)
        out.index_copy_(0, rows, chosen)
    return out


def _batch(q: Tensor, k: Tensor, v: Tensor, group: _Group) -> Tensor:
    shape = (group.count, group.length, *q.shape[1:])
    q, k, v = (x.reshape(shape).transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v)
    return out.transpose(1, 2).flatten(0, 1)
