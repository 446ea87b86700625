"""Normalisation layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trifocal.layers.base import Layer


class RMSNorm(Layer):
    """Root-mean-square norm as Llama has it: in float32, cast to the input's dtype, and only then times the weight."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size), requires_grad=False)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x [..., size] -> the same shape and dtype."""
        return self.kernels.rms_norm(x, self.weight, self.eps)

    def add(self, x: Tensor, delta: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
        """x and delta [rows, size] -> x + scale * delta, and the norm of it."""
        return self.kernels.add_rms_norm(x, delta, scale, self.weight, self.eps)

    def heads(self, x: Tensor, num_first: int, other: RMSNorm) -> Tensor:
        """x [n, heads, d] -> each head normed: the first ones by this norm, the rest by `other`, of the same kind."""
        return self.kernels.norm_heads(x, num_first, self.weight, other.weight, self.eps)
