"""InternViT: a plain vision transformer on square tiles, and the pixel shuffle that makes four patches one token."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trifocal.attention.vision import Segments, segment_attention
from trifocal.layers.base import Layer
from trifocal.layers.linear import Linear, MergedLinear
from trifocal.layers.mlp import GeluMLP
from trifocal.layers.norm import RMSNorm
from trifocal.layers.pixels import PatchEmbed
from trifocal.models.internvl.config import VisionConfig


def _norm(config: VisionConfig) -> nn.Module:
    if config.norm_type == "rms_norm":
        return RMSNorm(config.hidden_size, config.norm_eps)
    return nn.LayerNorm(config.hidden_size, config.norm_eps)


class VisionAttention(Layer):
    """Attention within a tile. The norms of q and k, where there are any, span all heads at once."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.head_dim = config.head_dim
        self.qkv = MergedLinear(width, {"q_proj": width, "k_proj": width, "v_proj": width}, bias=config.qkv_bias)
        self.proj = Linear(width, width, bias=True)
        self.q_norm = RMSNorm(width, config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(width, config.norm_eps) if config.qk_norm else nn.Identity()

    def forward(self, x: Tensor, tiles: Segments) -> Tensor:
        """[rows, hidden_size] -> [rows, hidden_size]."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        heads = (len(x), -1, self.head_dim)
        attended = segment_attention(
            self.q_norm(q).view(heads), self.k_norm(k).view(heads), v.view(heads), tiles, self.kernels
        )
        out: Tensor = self.proj(attended.flatten(1))
        return out


class VisionLayer(nn.Module):
    """Attention and MLP, each behind a norm, scaled by channel and beside a residual."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm1 = _norm(config)
        self.attn = VisionAttention(config)
        self.ls1 = nn.Parameter(torch.empty(config.hidden_size), requires_grad=False)
        self.norm2 = _norm(config)
        self.mlp = GeluMLP(config.hidden_size, config.intermediate_size)
        self.ls2 = nn.Parameter(torch.empty(config.hidden_size), requires_grad=False)

    def forward(self, x: Tensor, tiles: Segments) -> Tensor:
        """[rows, hidden_size] -> [rows, hidden_size]."""
        x = x + self.ls1 * self.attn(self.norm1(x), tiles)
        out: Tensor = x + self.ls2 * self.mlp(self.norm2(x))
        return out


class VisionTower(nn.Module):
    """Patches of tiles -> the last layer's features, four patches side by side. There is no norm at the end."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        shape = (3, config.patch_size, config.patch_size)
        self.patch_embed = PatchEmbed(
            config.hidden_size, shape, mean=config.image_mean, std=config.image_std, bias=True
        )
        num_positions = (config.image_size // config.patch_size) ** 2 + 1
        self.class_embedding = nn.Parameter(torch.empty(1, 1, config.hidden_size), requires_grad=False)
        self.position_embedding = nn.Parameter(torch.empty(1, num_positions, config.hidden_size), requires_grad=False)
        self.layers = nn.ModuleList(VisionLayer(config) for _ in range(config.num_layers))

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 [tiles * grid**2, 3 * patch**2], tiles row by row -> [tiles * tokens_per_tile, 4 * hidden_size]."""
        patches: Tensor = self.patch_embed(pixels).view(-1, self.config.grid**2, self.config.hidden_size)
        num_tiles, num_rows = len(patches), patches.shape[1] + 1
        x = torch.cat((self.class_embedding.expand(num_tiles, -1, -1), patches), dim=1) + self._positions()
        x = x.flatten(0, 1)
        tiles = Segments.from_lengths([num_rows] * num_tiles, pixels.device)
        for layer in self.layers:
            x = layer(x, tiles)
        return self._shuffle(x.view(num_tiles, num_rows, -1)[:, 1:])

    def _positions(self) -> Tensor:
        """[1, 1 + grid**2, hidden_size]: the table, resized where tiles have another grid than it was made for."""
        table, grid = self.position_embedding, self.config.grid
        side = math.isqrt(table.shape[1] - 1)
        if side == grid:
            return table
        planes = table[:, 1:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
        resized = F.interpolate(planes, size=(grid, grid), mode="bicubic", align_corners=False)
        return torch.cat((table[:, :1], resized.flatten(2).transpose(1, 2).to(table.dtype)), dim=1)

    def _shuffle(self, x: Tensor) -> Tensor:
        """[tiles, grid**2, hidden_size] -> [tiles * tokens, merge**2 * hidden_size], a token's patches row by row."""
        merge, side = self.config.merge, self.config.grid // self.config.merge
        # tile, row, row in token, column, column in token, channel
        blocks = x.reshape(-1, side, merge, side, merge, self.config.hidden_size)
        order = (0, 3, 1, 2, 4, 5) if self.config.is_transposed else (0, 1, 3, 2, 4, 5)
        return blocks.permute(order).flatten(3).flatten(0, 2)
