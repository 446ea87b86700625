"""What the worker needs of a model; every family's model class implements it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from torch import Tensor, nn

from trifocal.attention.base import AttentionBackend
from trifocal.types import MediaItem


class RunLayers(Protocol):
    """How a decoder's layers are run: `layers(*inputs)`, or a recording of that for inputs of the same shapes."""

    def __call__(self, layers: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """The result may lie in memory that the next call writes to."""
        ...


def run_layers(layers: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Python runs them."""
    return layers(*inputs)


class Model(nn.Module, ABC):
    """A vision-language model in pieces: the worker decides when each piece runs."""

    position_rows: int = 1  # 3 for M-RoPE

    @abstractmethod
    def rename(self, name: str) -> str | None:
        """Our name of a checkpoint's tensor, whatever spelling the checkpoint uses; None for one that is not needed."""

    def unpack(self, name: str, tensor: Tensor) -> Iterable[tuple[str, Tensor]]:
        """The weights that a checkpoint keeps as one tensor under `name` (as `rename` gives it); most are their own."""
        return ((name, tensor),)

    @abstractmethod
    def embed(self, token_ids: Tensor) -> Tensor:
        """int64 [n] -> [n, hidden_size]."""

    @abstractmethod
    def encode(self, items: Sequence[MediaItem]) -> list[Tensor]:
        """Embeddings of each media item, [span.num_embeds, hidden_size] each; `pixels` are arrays here."""

    @abstractmethod
    def dummy_item(self, num_embeds: int) -> MediaItem:
        """A blank media item of about `num_embeds` embeddings, for measuring memory."""

    @abstractmethod
    def forward(
        self,
        embeds: Tensor,
        positions: Tensor,
        attention: AttentionBackend,
        is_long: Tensor | None = None,
        run: RunLayers = run_layers,
    ) -> Tensor:
        """embeds [n, hidden_size], positions int64 [position_rows, n] -> hidden states after the last norm.

        `is_long`, bool [n], marks tokens of sequences longer than `RopeConfig.short_context`; None: there are none.
        `run` runs what the decoder does between its embeddings and its output: layers that depend on their inputs and
        on what `attention.begin` got alone.
        """

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """[m, hidden_size] -> float32 [m, vocab_size]."""
