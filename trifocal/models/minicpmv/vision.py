"""The SigLIP tower of MiniCPM-V: slices of any shape side by side, each attending within itself, no padding.

Sources: `modeling_navit_siglip.py` of 2.5 and 2.6 (equal to transformers' Idefics2 tower), timm's VisionTransformer
with `dynamic_img_size` in 2.0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trifocal.attention.vision import Segments, segment_attention
from trifocal.layers.base import Layer
from trifocal.layers.linear import Linear, MergedLinear
from trifocal.layers.mlp import GeluMLP
from trifocal.layers.pixels import PatchEmbed
from trifocal.models.minicpmv.config import VisionConfig

Grid = tuple[int, int]  # (h, w) of a slice, in patches


class PositionTable(nn.Module):
    """A learned embedding for each cell of a square grid, stretched over slices of other shapes."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.side = config.table_side
        self.is_interpolated = config.is_timm
        self.weight = nn.Parameter(torch.empty(self.side**2, config.hidden_size), requires_grad=False)

    def forward(self, grids: Sequence[Grid]) -> Tensor:
        """[sum(h * w), hidden_size]."""
        stretch = self._interpolate if self.is_interpolated else self._look_up
        stretched = {grid: stretch(grid) for grid in set(grids)}
        return torch.cat([stretched[grid] for grid in grids])

    def _look_up(self, grid: Grid) -> Tensor:
        return F.embedding(position_ids(*grid, self.side).to(self.weight.device), self.weight)

    def _interpolate(self, grid: Grid) -> Tensor:
        """As timm's `resample_abs_pos_embed`: bicubic with antialiasing, in float32."""
        if grid == (self.side, self.side):
            return self.weight
        table = self.weight.float().view(1, self.side, self.side, -1).permute(0, 3, 1, 2)
        table = F.interpolate(table, size=grid, mode="bicubic", antialias=True)
        return table.flatten(2)[0].T.to(self.weight.dtype)


@lru_cache(maxsize=256)
def position_ids(h: int, w: int, side: int) -> Tensor:
    """int64 [h * w] on the CPU: the cell of a table of `side` x `side` for each patch.

    Mostly floor(i * side / h), but the original counts with a tensor of sizes, so its step 1 / h is a float32, and some
    products fall just short of a cell's edge (h of 25, 49, 50, 55, 58 on 70 cells): the same arithmetic here.
    """
    edges = torch.arange(1 / side, 1.0, 1 / side)

    def cells(count: int) -> Tensor:
        step = (1 / torch.tensor(count, dtype=torch.int32)).item()
        return torch.bucketize(torch.arange(0, 1 - 1e-6, step), edges, right=True)

    return (cells(h)[:, None] * side + cells(w)).flatten()


class VisionAttention(Layer):
    """Attention within slices."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.shape = (3, config.num_heads, size // config.num_heads)
        self.qkv_proj = MergedLinear(size, dict.fromkeys(("q_proj", "k_proj", "v_proj"), size), bias=True)
        self.out_proj = Linear(size, size, bias=True)

    def forward(self, x: Tensor, segments: Segments) -> Tensor:
        """[rows, hidden_size] -> [rows, hidden_size]."""
        q, k, v = self.qkv_proj(x).view(len(x), *self.shape).unbind(1)
        out: Tensor = self.out_proj(segment_attention(q, k, v, segments, self.kernels).flatten(1))
        return out


class VisionLayer(nn.Module):
    """Attention and MLP, each behind a norm and beside a residual."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.self_attn = VisionAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = GeluMLP(
            config.hidden_size, config.intermediate_size, approximate="none" if config.is_timm else "tanh"
        )

    def forward(self, x: Tensor, segments: Segments) -> Tensor:
        """[rows, hidden_size] -> [rows, hidden_size]."""
        x = x + self.self_attn(self.layer_norm1(x), segments)
        out: Tensor = x + self.mlp(self.layer_norm2(x))
        return out


class VisionTower(nn.Module):
    """Patches of any number of slices -> features."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        patch = (3, config.patch_size, config.patch_size)
        self.patch_embed = PatchEmbed(config.hidden_size, patch, mean=config.mean, std=config.std, bias=True)
        self.positions = PositionTable(config)
        self.layers = nn.ModuleList(VisionLayer(config) for _ in range(config.num_layers))
        self.post_layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, pixels: Tensor, grids: Sequence[Grid]) -> Tensor:
        """pixels uint8 [sum(h * w), 3 * patch * patch], each slice in reading order -> [sum(h * w), hidden_size]."""
        segments = Segments.from_lengths([math.prod(grid) for grid in grids], pixels.device)
        x = self.patch_embed(pixels) + self.positions(grids)
        for layer in self.layers:
            x = layer(x, segments)
        out: Tensor = self.post_layernorm(x)
        return out
