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

from trifocal.attention.base import FULL, AttentionBackend, AttentionBatch, AttentionSpec, KVCache

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


@dataclass(frozen=True)
class _Calls:
    """Those of a layer: contexts are cut where no query of the step sees them."""

    prefills: list[_Prefill]
    decodes: list[_Decode]


class ReferenceAttention(AttentionBackend):
    """See `AttentionBackend`. A sequence's result depends on the rest of the step by rounding at most."""

    cache: KVCache

    def begin(self, batch: AttentionBatch) -> None:
        """Take the layout of the step; calls are planned by the first layer of each window, others repeat them."""
        self._batch = batch
        self._new = self.cache.rows(batch.slots)
        self._calls: dict[int | None, _Calls] = {}

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec = FULL) -> Tensor:
        """q [n, heads, head_dim], k and v [n, kv_heads, head_dim] -> [n, heads, head_dim]."""
        self.cache.write(layer, self._new, k, v)
        out = torch.empty_like(q)
        calls = self._calls.get(spec.window)
        if calls is None:
            calls = self._calls[spec.window] = self._plan(spec.window)
        # In float32 throughout, rounded once at the end: then how a sequence is cut into steps, and what runs beside
        # it, changes half-precision results hardly ever.
        q = q.float()
        for part in calls.prefills:
            rows = slice(part.start, part.start + part.length)
            if part.cached is None:
                k_context, v_context = k[rows].float(), v[rows].float()
            else:
                k_context, v_context = self.cache.read(layer, part.cached)
            out[rows] = _prefill(q[rows], k_context, v_context, spec).to(out.dtype)
        for group in calls.decodes:
            k_context, v_context = self.cache.read(layer, group.cached)
            chosen = q.index_select(0, group.rows)
            out.index_copy_(0, group.rows, _decode(chosen, k_context, v_context, group.bias, spec).to(out.dtype))
        return out

    def _plan(self, window: int | None) -> _Calls:
        batch, is_exact = self._batch, self.cache.key_scales is None  # what is read back is what was written
        prefills: list[_Prefill] = []
        decodes: list[tuple[int, int, int]] = []  # (tokens seen, sequence, row)
        row = 0
        for index, (length, context) in enumerate(zip(batch.query_lens, batch.context_lens, strict=True)):
            seen = context if window is None else min(context, length + window - 1)
            if length == 1:
                decodes.append((seen, index, row))
            else:
                is_all = length == context and is_exact
                prefills.append(_Prefill(row, length, None if is_all else self._rows([index], [seen])))
            row += length
        return _Calls(prefills, [self._decode_group(group) for group in _grouped(sorted(decodes))])

    def _rows(self, sequences: list[int], seen: list[int]) -> Tensor:
        """Cache rows of the last `seen` tokens of contexts, int64 [len(sequences) * max(seen) * kv_heads].

        Padding repeats a sequence's last token: unwritten cache may hold NaN, which no mask would silence.
        """
        tables, size = self._batch.block_tables, self.cache.block_size
        ends = torch.tensor([self._batch.context_lens[index] for index in sequences], device=tables.device)[:, None]
        starts = ends - torch.tensor(seen, device=tables.device)[:, None]
        positions = (starts + torch.arange(max(seen), device=tables.device)).minimum(ends - 1)
        blocks = tables[sequences].gather(1, positions // size)
        return self.cache.rows((blocks * size + positions % size).flatten())

    def _decode_group(self, group: list[tuple[int, int, int]]) -> _Decode:
        seen, sequences, rows = (list(column) for column in zip(*group, strict=True))
        device = self._batch.slots.device
        bias = None
        if min(seen) < max(seen):
            ends = torch.tensor(seen, device=device)[:, None, None, None]
            is_padding = torch.arange(max(seen), device=device) >= ends
            bias = torch.zeros(is_padding.shape, device=device).masked_fill_(is_padding, float("-inf"))
        return _Decode(torch.tensor(rows, device=device), self._rows(sequences, seen), bias)


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


def _decode(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, spec: AttentionSpec) -> Tensor:
    """q [b, heads, d], k and v [b * longest, kv_heads, d] -> [b, heads, d]."""
    batch, _, size = q.shape
    kv_heads = k.shape[1]
    k, v = (x.view(batch, -1, kv_heads, size).transpose(1, 2) for x in (k, v))
    return _attend(q.reshape(batch, kv_heads, -1, size), k, v, bias, spec).reshape(q.shape)


def _prefill(q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec) -> Tensor:
    """q [n, heads, d] are the last n of the positions of k and v [context, kv_heads, d] -> [n, heads, d]."""
    n, _, size = q.shape
    context, kv_heads, _ = k.shape
    # One "batch" per kv head, whose query heads see the same keys over a stride of 0: no copy, and no enable_gqa,
    # which is ten times slower on a CPU.
    q = q.view(n, kv_heads, -1, size).permute(1, 2, 0, 3)
    k, v = (x.transpose(0, 1)[:, None].expand(-1, q.shape[1], -1, -1) for x in (k, v))
    if n == context and spec.softcap is None and (spec.window is None or n <= spec.window):
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=spec.scale)
    else:
        out = torch.cat([_chunk(q, k, v, start, spec) for start in range(0, n, _CHUNK)], dim=2)
    return out.permute(2, 0, 1, 3).reshape(n, -1, size)


def _chunk(q: Tensor, k: Tensor, v: Tensor, start: int, spec: AttentionSpec) -> Tensor:
    """Query rows `start .. start + _CHUNK` of q [kv_heads, group, n, d] against the keys that any of them sees."""
    rows = q[:, :, start : start + _CHUNK]
    first = k.shape[2] - q.shape[2] + start  # position of the first row
    end = first + rows.shape[2]
    begin = 0 if spec.window is None else max(0, first - spec.window + 1)
    ahead = torch.full((rows.shape[2], end - begin), float("-inf"), dtype=q.dtype, device=q.device)
    mask = ahead.triu(first - begin + 1)
    if spec.window is not None:
        mask += ahead.tril(first - begin - spec.window)
    return _attend(rows, k[:, :, begin:end], v[:, :, begin:end], mask, spec)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, spec: AttentionSpec) -> Tensor:
    """q [..., rows, d], k and v [..., keys, d], `mask` added to scores -> [..., rows, d]."""
    if spec.softcap is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=spec.scale)
    scores = q @ k.transpose(-1, -2) * (spec.scale_for(q.shape[-1]) / spec.softcap)
    scores = scores.tanh_() * spec.softcap
    if mask is not None:
        scores = scores + mask
    return scores.softmax(-1) @ v
