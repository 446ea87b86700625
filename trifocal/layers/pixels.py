"""From bytes of pixels to patch embeddings: normalisation by table, then one product."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PatchEmbed(nn.Module):
    """Rows of bytes -> embeddings. The weight is a convolution's whose stride equals its size: a product.

    `shape` is that of a patch, (channels, …, height, width). `mean` and `std` are by channel, for bytes times
    `rescale_factor`.
    """

    table: Tensor

    def __init__(
        self,
        hidden_size: int,
        shape: Sequence[int],
        *,
        mean: Sequence[float],
        std: Sequence[float],
        rescale_factor: float = 1 / 255,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(hidden_size, *shape), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(hidden_size), requires_grad=False) if bias else None
        self.register_buffer("table", _byte_table(mean, std, rescale_factor), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 [rows, channels * … * height * width] -> [rows, hidden_size]."""
        return F.linear(self.normalize(pixels).to(self.weight.dtype), self.weight.flatten(1), self.bias)

    def normalize(self, pixels: Tensor) -> Tensor:
        """uint8 [rows, columns] -> float32, rescaled and normalised by channel."""
        channels, _ = self.table.shape
        by_channel = pixels.view(len(pixels), channels, -1).int()
        by_channel += torch.arange(channels, dtype=torch.int32, device=pixels.device)[:, None] * 256
        return self.table.flatten().index_select(0, by_channel.flatten()).view(pixels.shape)


def _byte_table(mean: Sequence[float], std: Sequence[float], rescale_factor: float) -> Tensor:
    """float32 [channels, 256]: what each byte becomes, rounded exactly where transformers' PIL processors round."""
    scaled = (np.arange(256, dtype=np.float64) * rescale_factor).astype(np.float32)
    middle = np.array(mean, dtype=np.float32)[:, None]
    spread = np.array(std, dtype=np.float32)[:, None]
    return torch.from_numpy((scaled - middle) / spread)
