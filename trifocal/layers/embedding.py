"""Token embeddings, and the head that turns hidden states back into scores of tokens."""

from __future__ import annotations

from torch import Tensor

from trifocal.layers.linear import Linear


class Embedding(Linear):
    """A table [num_embeddings, size]: a linear layer without bias whose rows can be looked up."""

    def __init__(self, num_embeddings: int, size: int) -> None:
        super().__init__(size, num_embeddings, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """int64 [n] -> [n, size]."""
        return self.method.look_up(self, ids)

    def as_head(self, hidden: Tensor) -> Tensor:
        """The table used as an output layer (tied weights): [n, size] -> [n, num_embeddings]."""
        return self.method.apply(self, hidden)
