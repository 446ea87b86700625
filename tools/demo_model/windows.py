"""Vision attention that runs all windows of one length at once.

The reference loops over windows in Python, which on small pictures costs more than the arithmetic. The
replacement computes the same attention; `tests/tools` holds the two equal on a mixed batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as reference

Groups = list[tuple[Tensor, int]]


def length_groups(cu_seqlens: Tensor) -> Groups:
    """For every distinct window length: the row numbers [count * length] of those windows, and the length."""
    bounds = torch.unique_consecutive(cu_seqlens).tolist()
    by_length: dict[int, list[int]] = {}
    for begin, end in pairwise(bounds):
        by_length.setdefault(end - begin, []).append(begin)
    groups = []
    for length, begins in sorted(by_length.items()):
        rows = torch.tensor(begins)[:, None] + torch.arange(length)[None, :]
        groups.append((rows.reshape(-1), length))
    return groups


class _Cache:
    """Groups of the cu_seqlens tensor seen last (two alternate within one forward)."""

    def __init__(self) -> None:
        self._kept: list[tuple[Tensor, Groups]] = []

    def groups(self, cu_seqlens: Tensor) -> Groups:
        for tensor, groups in self._kept:
            if tensor is cu_seqlens:
                return groups
        self._kept = [*self._kept[-3:], (cu_seqlens, length_groups(cu_seqlens))]
        return self._kept[-1][1]


_CACHE = _Cache()


def _grouped_forward(
    self: Any,
    hidden_states: Tensor,
    cu_seqlens: Tensor,
    position_embeddings: tuple[Tensor, Tensor] | None = None,
    max_seqlen: int | None = None,
    **kwargs: Any,
) -> Tensor:
    """[rows, dim] -> [rows, dim], attention inside the segments that `cu_seqlens` bounds."""
    rows, heads, size = hidden_states.shape[0], self.num_heads, self.head_dim
    assert position_embeddings is not None
    cos, sin = position_embeddings
    query, key, value = self.qkv(hidden_states).reshape(rows, 3, heads, size).unbind(1)
    query, key = reference.apply_rotary_pos_emb_vision(query, key, cos, sin)
    qkv = torch.stack([query.to(value.dtype), key.to(value.dtype), value], dim=1)
    groups = _CACHE.groups(cu_seqlens)
    outputs = []
    for index, length in groups:
        q, k, v = qkv[index].view(-1, length, 3, heads, size).permute(2, 0, 3, 1, 4).unbind(0)
        attended = scaled_dot_product_attention(q, k, v, scale=self.scaling)
        outputs.append(attended.transpose(1, 2).reshape(-1, heads * size))
    order = torch.cat([index for index, _ in groups])
    merged = torch.cat(outputs)[torch.argsort(order)]
    result: Tensor = self.proj(merged)
    return result


@contextmanager
def grouped_windows() -> Iterator[None]:
    """Within the block every Qwen2.5-VL vision attention runs grouped."""
    attention: Any = reference.Qwen2_5_VLVisionAttention
    stock = attention.forward
    attention.forward = _grouped_forward
    try:
        yield
    finally:
        attention.forward = stock
