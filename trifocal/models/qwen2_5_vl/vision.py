"""The vision tower of Qwen2.5-VL: patches, windowed attention with some full layers, merger."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trifocal.attention.vision import Segments, segment_attention
from trifocal.layers.base import Layer
from trifocal.layers.linear import Linear
from trifocal.layers.mlp import GatedMLP
from trifocal.layers.norm import RMSNorm
from trifocal.layers.pixels import PatchEmbed
from trifocal.layers.rotary import Rotate
from trifocal.models.qwen2_5_vl.config import VisionConfig
from trifocal.models.qwen2_5_vl.windows import Grid, pack

_NORM_EPS = 1e-6
_ROTARY_THETA = 10000.0


class VisionAttention(Layer):
    """Attention within segments; rotary in float32."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.shape = (3, config.num_heads, config.head_dim)
        self.qkv = Linear(config.hidden_size, 3 * config.hidden_size, bias=True)
        self.rotate = Rotate()
        self.proj = Linear(config.hidden_size, config.hidden_size, bias=True)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, segments: Segments) -> Tensor:
        """x [rows, hidden_size], cos and sin float32 [rows, 1, head_dim / 2] -> [rows, hidden_size]."""
        q, k, v = self.qkv(x).view(len(x), *self.shape).unbind(1)
        q = self.rotate(q.float(), cos, sin).to(x.dtype)
        k = self.rotate(k.float(), cos, sin).to(x.dtype)
        out: Tensor = self.proj(segment_attention(q, k, v, segments, self.kernels).flatten(1))
        return out


class VisionBlock(nn.Module):
    """Attention and gated MLP (with biases), each behind a norm and beside a residual."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm1 = RMSNorm(config.hidden_size, _NORM_EPS)
        self.attn = VisionAttention(config)
        self.norm2 = RMSNorm(config.hidden_size, _NORM_EPS)
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size, bias=True)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, segments: Segments) -> Tensor:
        """[rows, hidden_size] -> [rows, hidden_size]."""
        x = x + self.attn(self.norm1(x), cos, sin, segments)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class PatchMerger(nn.Module):
    """Norm on single patches, then the patches of a token side by side through two layers."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        merged = config.hidden_size * config.merge_unit
        self.ln_q = RMSNorm(config.hidden_size, _NORM_EPS)
        self.mlp = nn.Sequential(
            Linear(merged, merged, bias=True), nn.GELU(), Linear(merged, config.out_hidden_size, bias=True)
        )
        self.merged_size = merged

    def forward(self, x: Tensor) -> Tensor:
        """[rows, hidden_size] -> [rows / 4, out_hidden_size]."""
        out: Tensor = self.mlp(self.ln_q(x).view(-1, self.merged_size))
        return out


class VisionTower(nn.Module):
    """Pixels of any number of pictures and clips -> one embedding per token."""

    inv_freq: Tensor

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(
            config.hidden_size,
            (config.in_channels, config.temporal_patch_size, config.patch_size, config.patch_size),
            mean=config.image_mean,
            std=config.image_std,
            rescale_factor=config.rescale_factor,
        )
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.depth))
        self.merger = PatchMerger(config)
        half = config.head_dim // 2  # each axis turns half of the frequencies
        exponents = torch.arange(0, half, 2, dtype=torch.float32, device="cpu") / half
        self.register_buffer("inv_freq", 1.0 / _ROTARY_THETA**exponents, persistent=False)

    def forward(self, pixels: Tensor, grids: Sequence[Grid]) -> Tensor:
        """pixels uint8 [sum(t*h*w), columns] in merge-block order -> [sum(t*h*w) / 4, out_hidden_size].

        Attention stays within a window, in full layers within a frame: items do not see each other, nor do frames.
        """
        config, device = self.config, pixels.device
        layout = pack(grids, config.spatial_merge_size, config.window_groups)
        order = torch.from_numpy(layout.order).to(device)
        windows = Segments.from_lengths(layout.window_lengths, device)
        frames = Segments.from_lengths(layout.frame_lengths, device)
        angles = torch.from_numpy(layout.positions).to(device).float()[..., None] * self.inv_freq
        angles = self._in_order(angles.flatten(1), order)[:, None]
        cos, sin = angles.cos(), angles.sin()
        x = self._in_order(self.patch_embed(pixels), order)
        for index, block in enumerate(self.blocks):
            x = block(x, cos, sin, frames if index in config.full_attention_blocks else windows)
        merged: Tensor = self.merger(x)
        return torch.empty_like(merged).index_copy_(0, order, merged)

    def _in_order(self, rows: Tensor, order: Tensor) -> Tensor:
        """Permute [n, size] by whole merged blocks."""
        blocks = rows.view(len(order), -1)
        return blocks.index_select(0, order).view(rows.shape)
