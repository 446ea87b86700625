"""Token embeddings, and the head that turns hidden states back into scores of tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trifocal.layers.base import Layer


class Embedding(Layer):
    """A table [num_embeddings, size]."""

    def __init__(self, num_embeddings: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_embeddings, size), requires_grad=False)

    def forward(self, ids: Tensor) -> Tensor:
        """int64 [n] -> [n, size]."""
        return F.embedding(ids, self.weight)

    def as_head(self, hidden: Tensor) -> Tensor:
        """The table used as an output layer (tied weights): [n, size] -> [n, num_embeddings]."""
        return self.kernels.linear(hidden, self.weight, None)
