"""Qwen2.5-VL: a windowed vision tower whose embeddings take the places of pad tokens in a Qwen2 decoder with M-RoPE."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from trifocal.distributed import SOLO, Group
from trifocal.families import DECODERS
from trifocal.model_spec import ModelSpec
from trifocal.models.base import Model
from trifocal.models.qwen2_5_vl.config import VisionConfig
from trifocal.models.qwen2_5_vl.vision import VisionTower
from trifocal.types import MediaItem, Span

# Checkpoint prefix -> ours, the first that fits: released files, and those saved by transformers 4.52 and later.
_PREFIXES = (
    ("visual.patch_embed.proj.", "visual.patch_embed."),
    ("model.visual.patch_embed.proj.", "visual.patch_embed."),
    ("model.visual.", "visual."),
    ("model.language_model.", "language_model."),
    ("model.", "language_model."),
    ("lm_head.", "language_model.lm_head."),
)


class Qwen2_5_VL(Model):
    """Images and videos of any size in, Qwen2 out."""

    position_rows = 3

    def __init__(self, spec: ModelSpec, group: Group = SOLO) -> None:
        super().__init__()
        self.visual = VisionTower(VisionConfig.from_spec(spec))
        self.language_model = DECODERS.get("Qwen2ForCausalLM")(spec.text, group)

    def rename(self, name: str) -> str | None:
        if name == "lm_head.weight" and self.language_model.lm_head is None:
            return None  # a copy of the tied embedding
        for prefix, ours in _PREFIXES:
            if name.startswith(prefix):
                return ours + name.removeprefix(prefix)
        return name

    def encode(self, items: Sequence[MediaItem]) -> list[Tensor]:
        """Embeddings of each item, [t * h * w / 4, hidden_size] for its grid (t, h, w); one pass for all items.

        Each has memory of its own, so that a cache can drop one item without the others.
        """
        pixels = np.concatenate([np.asarray(item.pixels) for item in items])
        device = self.language_model.embed_tokens.weight.device
        embeds: Tensor = self.visual(torch.from_numpy(pixels).to(device), [item.grid for item in items])
        sizes = [math.prod(item.grid) // self.visual.config.merge_unit for item in items]
        return [part.clone() for part in torch.split(embeds, sizes)] if len(items) > 1 else [embeds]

    def dummy_item(self, num_embeds: int) -> MediaItem:
        """A black picture, nearly square, of `num_embeds` embeddings or a few fewer."""
        config = self.visual.config
        merge, side = config.spatial_merge_size, max(1, math.isqrt(num_embeds))
        height, width = side, max(1, num_embeds // side)
        grid = (1, height * merge, width * merge)
        pixels = np.zeros((math.prod(grid), config.patch_bytes), dtype=np.uint8)
        return MediaItem("image", bytes(16), Span(0, height * width), grid, pixels)
