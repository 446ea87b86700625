"""Paged causal attention in plain torch, for any device: what every other backend is compared with.

Keys and values are gathered out of their blocks vector by vector (by `index_select`, which is several times faster on
a CPU than indexing), then go through torch's fused attention. Query heads that share a kv head are never multiplied
out: they ride along as rows (decoding) or over a stride of 0 (prefill).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from trifocal.attention.base import AttentionBackend, AttentionBatch, KVCache

_CHUNK = 256  # query rows that share one mask: bounds its memory at _CHUNK * context
_FREE_PADDING = 512  # padded tokens that cost less than one more call


@dataclass(frozen=True)
class _Prefill:
    """One sequence with several query tokens: rows `start .. start + length` of q."""

    start: int
    length: int
    cached: Tensor | None  # int64 [context * kv_heads], rows of the cache; None where k and v of this step are all


@dataclass(frozen=True)
class _Decode:
    """Sequences with one query token each, padded to one context length."""

    rows: Tensor  # int64 [b], rows of q
    cached: Tensor  # int64 [b * longest * kv_heads], rows of the cache
    bias: Tensor | None  # float32 [b, 1, 1, longest], -inf on padding


class ReferenceAttention(AttentionBackend):
    """See `AttentionBackend`. A sequence's result depends on the rest of the step by rounding at most."""

    cache: KVCache

    def begin(self, batch: AttentionBatch) -> None:
        """Plan the calls of a step; every layer repeats them."""
        self._new = self.cache.rows(batch.slots)
        is_exact = self.cache.key_scales is None  # what is read back is what was written
        self._prefills: list[_Prefill] = []
        decodes: list[tuple[int, int, int]] = []  # (context, sequence, row)
        row = 0
        for index, (length, context) in enumerate(zip(batch.query_lens, batch.context_lens, strict=True)):
            if length == 1:
                decodes.append((context, index, row))
            else:
                is_all = length == context and is_exact
                self._prefills.append(_Prefill(row, length, None if is_all else self._rows(batch, [index], [context])))
            row += length
        self._decodes = [self._decode_group(batch, group) for group in _grouped(sorted(decodes))]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [n, heads, head_dim], k and v [n, kv_heads, head_dim] -> [n, heads, head_dim]."""
        self.cache.write(layer, self._new, k, v)
        out = torch.empty_like(q)
        # In float32 throughout, rounded once at the end: then how a sequence is cut into steps, and what runs beside
        # it, changes half-precision results hardly ever.
        q = q.float()
        for part in self._prefills:
            rows = slice(part.start, part.start + part.length)
            if part.cached is None:
                k_context, v_context = k[rows].float(), v[rows].float()
            else:
                k_context, v_context = self.cache.read(layer, part.cached)
            out[rows] = _prefill(q[rows], k_context, v_context).to(out.dtype)
        for group in self._decodes:
            k_context, v_context = self.cache.read(layer, group.cached)
            chosen = q.index_select(0, group.rows)
            out.index_copy_(0, group.rows, _decode(chosen, k_context, v_context, group.bias).to(out.dtype))
        return out

    def _rows(self, batch: AttentionBatch, sequences: list[int], contexts: list[int]) -> Tensor:
        """Cache rows of whole contexts, int64 [len(sequences) * max(contexts) * kv_heads].

        Padding repeats a sequence's last token: unwritten cache may hold NaN, which no mask would silence.
        """
        tables, size = batch.block_tables, self.cache.block_size
        ends = torch.tensor(contexts, device=tables.device)[:, None]
        positions = torch.arange(max(contexts), device=tables.device).expand(len(contexts), -1).minimum(ends - 1)
        blocks = tables[sequences].gather(1, positions // size)
        return self.cache.rows((blocks * size + positions % size).flatten())

    def _decode_group(self, batch: AttentionBatch, group: list[tuple[int, int, int]]) -> _Decode:
        contexts, sequences, rows = (list(column) for column in zip(*group, strict=True))
        device = batch.slots.device
        bias = None
        if min(contexts) < max(contexts):
            ends = torch.tensor(contexts, device=device)[:, None, None, None]
            is_padding = torch.arange(max(contexts), device=device) >= ends
            bias = torch.zeros(is_padding.shape, device=device).masked_fill_(is_padding, float("-inf"))
        return _Decode(torch.tensor(rows, device=device), self._rows(batch, sequences, contexts), bias)


def _grouped(decodes: list[tuple[int, int, int]]) -> list[list[tuple[int, int, int]]]:
    """Cut decoding sequences, shortest first, into groups of which padding makes up a quarter at most."""
    groups: list[list[tuple[int, int, int]]] = []
    total = 0
    for item in decodes:
        total += item[0]
        if groups:
            padding = item[0] * (len(groups[-1]) + 1) - total
            if padding <= max(total // 3, _FREE_PADDING):
                groups[-1].append(item)
                continue
        groups.append([item])
        total = item[0]
    return groups


def _decode(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """q [b, heads, d], k and v [b * longest, kv_heads, d] -> [b, heads, d]."""
    batch, _, size = q.shape
    kv_heads = k.shape[1]
    k, v = (x.view(batch, -1, kv_heads, size).transpose(1, 2) for x in (k, v))
    return F.scaled_dot_product_attention(q.reshape(batch, kv_heads, -1, size), k, v, attn_mask=bias).view(q.shape)


def _prefill(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q [n, heads, d] are the last n of the positions of k and v [context, kv_heads, d] -> [n, heads, d]."""
    n, _, size = q.shape
    context, kv_heads, _ = k.shape
    # One "batch" per kv head, whose query heads see the same keys over a stride of 0: no copy, and no enable_gqa,
    # which is ten times slower on a CPU.
    q = q.view(n, kv_heads, -1, size).permute(1, 2, 0, 3)
    k, v = (x.transpose(0, 1)[:, None].expand(-1, q.shape[1], -1, -1) for x in (k, v))
    if n == context:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    else:
        out = torch.cat([_chunk(q, k, v, start) for start in range(0, n, _CHUNK)], dim=2)
    return out.permute(2, 0, 1, 3).reshape(n, -1, size)


def _chunk(q: Tensor, k: Tensor, v: Tensor, start: int) -> Tensor:
    """Query rows `start .. start + _CHUNK` of q [kv_heads, group, n, d] against the keys up to the last of them."""
    rows = q[:, :, start : start + _CHUNK]
    first = k.shape[2] - q.shape[2] + start  # position of the first row
    end = first + rows.shape[2]
    mask = torch.full((rows.shape[2], end), float("-inf"), dtype=q.dtype, device=q.device).triu_(first + 1)
    return F.scaled_dot_product_attention(rows, k[:, :, :end], v[:, :, :end], attn_mask=mask)
