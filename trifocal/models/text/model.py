"""A language model alone: one of the decoders, with the names of its own checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from trifocal.distributed import SOLO, Group
from trifocal.model_spec import ModelSpec
from trifocal.models.base import Model
from trifocal.models.choose_decoder import make_decoder
from trifocal.types import MediaItem


class TextModel(Model):
    """Tokens in, tokens out."""

    def __init__(self, spec: ModelSpec, group: Group = SOLO) -> None:
        super().__init__()
        self.language_model = make_decoder(spec, group)

    def rename(self, name: str) -> str | None:
        ours = self.language_model.rename(name)
        return None if ours is None else f"language_model.{ours}"

    def encode(self, items: Sequence[MediaItem]) -> NoReturn:
        """There is nothing to encode: processors of language models make prompts without media."""
        raise ValueError(f"a model that takes text only got {len(items)} media items")

    def dummy_item(self, num_embeds: int) -> None:
        """None: no media are taken."""
        del num_embeds
