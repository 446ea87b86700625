"""Token embeddings, and the head that turns hidden states back into scores of tokens."""

from __future__ import annotations

from torch import Tensor

from trifocal.distributed import SOLO, Group
from trifocal.layers.linear import Linear, outputs_of
from trifocal.layers.slots import Slot


class _Vocabulary(Linear):
    """A linear layer whose outputs are tokens. Each rank has as many of them; behind the last one are zeros."""

    def __init__(self, size: int, num_tokens: int, group: Group) -> None:
        number = -(-num_tokens // group.size)
        super().__init__(size, number, bias=False)
        self.num_tokens, self.first_token, self.group = num_tokens, group.rank * number, group

    def weight_slots(self) -> dict[str, Slot]:
        """They take in whole tensors."""
        slots = super().weight_slots()
        return {name: outputs_of(self, name, slot, self.first_token, self.num_tokens) for name, slot in slots.items()}

    def scores(self, hidden: Tensor) -> Tensor:
        """[n, size] -> [n, num_tokens] on rank 0; other ranks have their own tokens' alone."""
        scores = self.method.apply(self, hidden)
        return scores if self.group.size == 1 else self.group.gather(scores, dim=-1)[..., : self.num_tokens]


class Embedding(_Vocabulary):
    """A table [num_embeddings, size]: a linear layer without bias whose rows can be looked up."""

    def __init__(self, num_embeddings: int, size: int, group: Group = SOLO) -> None:
        super().__init__(size, num_embeddings, group)

    def forward(self, ids: Tensor) -> Tensor:
        """int64 [n] -> [n, size], the same on all ranks."""
        if self.group.size == 1:
            return self.method.look_up(self, ids)
        own = ids - self.first_token
        is_other = (own < 0) | (own >= self.out_features)
        rows = self.method.look_up(self, own.masked_fill(is_other, 0)).masked_fill(is_other[:, None], 0)
        return self.group.all_reduce(rows)

    def as_head(self, hidden: Tensor) -> Tensor:
        """The table used as an output layer (tied weights): see `OutputHead`."""
        return self.scores(hidden)


class OutputHead(_Vocabulary):
    """The output layer of a language model, where it is not its table of embeddings."""

    def __init__(self, size: int, num_tokens: int, group: Group = SOLO) -> None:
        super().__init__(size, num_tokens, group)

    def forward(self, hidden: Tensor) -> Tensor:
        """[n, size] -> [n, num_tokens] on rank 0; other ranks have their own tokens' alone."""
        return self.scores(hidden)


class ScaledEmbedding(Embedding):
    """A table whose rows are multiplied by `scale` when they are looked up, but not when they are the output layer."""

    def __init__(self, num_embeddings: int, size: int, scale: float, group: Group = SOLO) -> None:
        super().__init__(num_embeddings, size, group)
        self.factor = scale

    def forward(self, ids: Tensor) -> Tensor:
        """int64 [n] -> [n, size]."""
        return super().forward(ids) * self.factor
