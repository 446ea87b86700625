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


class ScaledEmbedding(Embedding):
    """A table whose rows are multiplied by `scale` when they are looked up, but not when they are the output layer."""

    def __init__(self, num_embeddings: int, size: int, scale: float) -> None:
        super().__init__(num_embeddings, size)
        self.factor = scale

    def forward(self, ids: Tensor) -> Tensor:
        """int64 [n] -> [n, size]."""
        return super().forward(ids) * self.factor
