"""The resampler of MiniCPM-V: a fixed number of learned queries reads each slice. Source: OpenBMB's `resampler.py`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trifocal.layers.linear import Linear
from trifocal.models.minicpmv.config import MiniCPMVConfig
from trifocal.models.minicpmv.vision import Grid

_NORM_EPS = 1e-6


class CrossAttention(nn.Module):
    """Multi-head attention with the parameters of torch's `MultiheadAttention`: q, k and v in one stack of rows."""

    def __init__(self, size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * size, size), requires_grad=False)
        self.in_proj_bias = nn.Parameter(torch.empty(3 * size), requires_grad=False)
        self.out_proj = Linear(size, size, bias=True)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, lengths: Sequence[int]) -> Tensor:
        """The same queries [q, size] read each stretch of keys and values [sum(lengths), size] by itself.

        -> [len(lengths), q, size]
        """
        rows = zip(self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3), (queries, keys, values), strict=True)
        q, k, v = (F.linear(x, weight, bias).view(len(x), self.num_heads, -1) for weight, bias, x in rows)
        outs, start = [], 0
        for length, run in groupby(lengths):  # neighbours of one length are a batch: the slices of a picture are
            count = len(list(run))
            end = start + count * length
            some_k, some_v = (x[start:end].view(count, length, *x.shape[1:]).transpose(1, 2) for x in (k, v))
            outs.append(F.scaled_dot_product_attention(q.transpose(0, 1).expand(count, -1, -1, -1), some_k, some_v))
            start = end
        out: Tensor = self.out_proj(torch.cat(outs).transpose(1, 2).flatten(2))
        return out


class Resampler(nn.Module):
    """Features of slices, whatever their number -> `num_queries` embeddings of the language model each.

    Keys carry the sine and cosine positions of their patches, values do not. In version 2.0 the queries stand on a
    square grid and carry positions as well.
    """

    frequencies: Tensor

    def __init__(self, config: MiniCPMVConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.query_side = math.isqrt(config.num_queries) if config.version == (2, 0) else None
        self.query = nn.Parameter(torch.empty(config.num_queries, size), requires_grad=False)
        self.kv_proj = Linear(config.vision.hidden_size, size, bias=False)
        self.attn = CrossAttention(size, config.num_heads)
        self.ln_q = nn.LayerNorm(size, _NORM_EPS)
        self.ln_kv = nn.LayerNorm(size, _NORM_EPS)
        self.ln_post = nn.LayerNorm(size, _NORM_EPS)
        self.proj = nn.Parameter(torch.empty(size, size), requires_grad=False)
        # A quarter of the channels for each of sine and cosine of column and row; float32 throughout, as numpy there.
        exponents = np.arange(size // 4, dtype=np.float32) / (size / 4)
        self.register_buffer("frequencies", torch.from_numpy(1.0 / 10000.0**exponents).float(), persistent=False)

    def forward(self, x: Tensor, grids: Sequence[Grid]) -> Tensor:
        """x [sum(h * w), vision hidden_size] -> [len(grids) * num_queries, hidden_size]."""
        positions = {grid: self._positions(grid).to(x.dtype) for grid in set(grids)}
        values = self.ln_kv(self.kv_proj(x))
        keys = values + torch.cat([positions[grid] for grid in grids])
        queries = self.ln_q(self.query)
        if self.query_side is not None:
            queries = queries + self._positions((self.query_side, self.query_side)).to(x.dtype)
        read = self.attn(queries, keys, values, [math.prod(grid) for grid in grids])
        out: Tensor = self.ln_post(read.flatten(0, 1)) @ self.proj  # not transposed: a plain matrix, no Linear
        return out

    def _positions(self, grid: Grid) -> Tensor:
        """float32 [h * w, size]: the first half of the channels tells the column, the second the row."""
        row, column = (self._waves(count) for count in grid)
        h, w = grid
        return torch.cat((column.expand(h, -1, -1), row[:, None].expand(-1, w, -1)), dim=-1).flatten(0, 1)

    def _waves(self, count: int) -> Tensor:
        """float32 [count, size / 2]: sines, then cosines."""
        angles = torch.arange(count, device=self.frequencies.device).float()[:, None] * self.frequencies
        return torch.cat((angles.sin(), angles.cos()), dim=-1)
