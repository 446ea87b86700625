"""What the worker needs of a model; every family's model class implements it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from trifocal.attention.base import AttentionBackend
from trifocal.models.decoder import Decoder, RunLayers, run_layers
from trifocal.types import MediaItem

MediaRows = tuple[slice | Tensor, Tensor]  # rows of a step (int64 where no slice), and the embeddings that they take

_DECODER = "language_model."


class Model(nn.Module, ABC):
    """A language model, with or without towers, in pieces: the worker decides when each piece runs.

    Made of a `ModelSpec` and a rank's `Group`: the ranks share the language model, each has the towers whole.
    """

    position_rows: int = 1  # 3 for M-RoPE
    language_model: Decoder

    @abstractmethod
    def rename(self, name: str) -> str | None:
        """Our name of a checkpoint's tensor, whatever spelling the checkpoint uses; None for one that is not needed."""

    def unpack(self, name: str, tensor: Tensor) -> Iterable[tuple[str, Tensor]]:
        """The weights that a checkpoint keeps as one tensor under `name` (as `rename` gives it); most are their own."""
        if not name.startswith(_DECODER):
            return ((name, tensor),)
        parts = self.language_model.unpack(name.removeprefix(_DECODER), tensor)
        return [(f"{_DECODER}{part}", values) for part, values in parts]

    @abstractmethod
    def encode(self, items: Sequence[MediaItem]) -> list[Tensor]:
        """Embeddings of each media item, [span.num_embeds, width] each; `pixels` are arrays here.

        What a row holds is between this and `merge`: as a rule an embedding of the language model's width.
        """

    @abstractmethod
    def dummy_item(self, num_embeds: int) -> MediaItem | None:
        """A blank media item of about `num_embeds` embeddings, for measuring memory; None where none are taken."""

    def merge(self, token_ids: Tensor, media: Sequence[MediaRows] = ()) -> tuple[Tensor, ...]:
        """The inputs of the layers for tokens int64 [n]: embeddings [n, hidden_size], those of media in their places.

        A family that feeds more than the first layer (DeepStack) returns the rows for the others behind them.
        """
        embeds = self.language_model.embed_tokens(token_ids)
        for rows, values in media:
            embeds[rows] = values.to(embeds.dtype)
        return (embeds,)

    def forward(
        self,
        inputs: tuple[Tensor, ...],
        positions: Tensor,
        attention: AttentionBackend,
        is_long: Tensor | None = None,
        run: RunLayers = run_layers,
    ) -> Tensor:
        """What `merge` gives, positions int64 [position_rows, n] -> hidden states [n, hidden_size] after the last norm.

        `is_long`, bool [n], marks tokens of sequences longer than `RopeConfig.short_context`; None: there are none.
        `run` runs what the decoder does between its inputs and its output: layers that depend on their inputs and on
        what `attention.begin` got alone.
        """
        hidden: Tensor = self.language_model(*inputs, positions, attention, is_long, run)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """[m, hidden_size] -> float32 [m, vocab_size]."""
        return self.language_model.logits(hidden)
