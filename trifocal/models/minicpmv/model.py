"""MiniCPM-V 2.0, 2.5 and 2.6: slices of a picture through SigLIP and a resampler into MiniCPM-2B, Llama 3 or Qwen2."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from trifocal.distributed import SOLO, Group
from trifocal.families import DECODERS
from trifocal.model_spec import ModelSpec
from trifocal.models.base import Model
from trifocal.models.decoder import split_rows
from trifocal.models.minicpmv.config import MiniCPMVConfig, Version
from trifocal.models.minicpmv.resampler import Resampler
from trifocal.models.minicpmv.vision import Grid, VisionTower
from trifocal.types import MediaItem, Span

_LANGUAGE_MODELS: dict[Version, str] = {
    (2, 0): "MiniCPMForCausalLM",
    (2, 5): "LlamaForCausalLM",
    (2, 6): "Qwen2ForCausalLM",
}
_LAYER = re.compile(r"vpm\.(?:encoder\.layers|blocks)\.(\d+)\.")
_NOT_NEEDED = ("vpm.attn_pool.", "vpm.embeddings.position_ids", "resampler.pos_embed")  # unused or computed

# Checkpoint word -> ours within the vision tower: the NaViT tower of 2.5 and 2.6, and timm's of 2.0.
_TOWER_NAMES = (
    ("embeddings.patch_embedding.", "patch_embed."),
    ("embeddings.position_embedding.", "positions."),
    ("encoder.layers.", "layers."),
    ("patch_embed.proj.", "patch_embed."),
    ("pos_embed", "positions.weight"),
    ("blocks.", "layers."),
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
    (".attn.proj.", ".self_attn.out_proj."),
    (".attn.qkv.", ".self_attn.qkv."),
    ("vpm.norm.", "vpm.post_layernorm."),
)


class MiniCPMV(Model):
    """Pictures as an overview and slices, clips as pictures; `num_queries` embeddings for each of them."""

    def __init__(self, spec: ModelSpec, group: Group = SOLO) -> None:
        super().__init__()
        self.config = MiniCPMVConfig.from_spec(spec)
        self.vpm = VisionTower(self.config.vision)
        self.resampler = Resampler(self.config)
        self.language_model = DECODERS.get(_LANGUAGE_MODELS[self.config.version])(spec.text, group)

    def rename(self, name: str) -> str | None:
        if name.startswith("llm."):
            ours = self.language_model.rename(name.removeprefix("llm."))
            return None if ours is None else f"language_model.{ours}"
        layer = _LAYER.match(name)
        if name.startswith(_NOT_NEEDED) or (layer and int(layer[1]) >= self.config.vision.num_layers):
            return None
        if name.startswith("vpm."):
            for theirs, ours in _TOWER_NAMES:
                name = name.replace(theirs, ours)
        return name

    def unpack(self, name: str, tensor: Tensor) -> Iterable[tuple[str, Tensor]]:
        """timm keeps q, k and v of the tower as one tensor, and a batch axis before its table of positions."""
        if ".self_attn.qkv." in name:
            return split_rows(name, tensor, dict.fromkeys(("q_proj", "k_proj", "v_proj"), len(tensor) // 3))
        if name == "vpm.positions.weight":
            return ((name, tensor.flatten(0, -2)),)
        return super().unpack(name, tensor)

    def encode(self, items: Sequence[MediaItem]) -> list[Tensor]:
        """Embeddings of each item, [slices * num_queries, hidden_size], overview before slices, frame by frame.

        The tower takes `batch_size` slices at a time, from whatever items: a long clip must not need the memory of
        all its frames at once.
        """
        device = self.language_model.embed_tokens.weight.device
        pixels = torch.from_numpy(np.concatenate([np.asarray(item.pixels) for item in items]))
        by_item = [slice_grids(item) for item in items]
        grids = [grid for item_grids in by_item for grid in item_grids]
        parts, start = [], 0
        for first in range(0, len(grids), self.config.batch_size):
            batch = grids[first : first + self.config.batch_size]
            end = start + sum(math.prod(grid) for grid in batch)
            parts.append(self.resampler(self.vpm(pixels[start:end].to(device), batch), batch))
            start = end
        embeds = torch.cat(parts)
        sizes = [len(item_grids) * self.config.num_queries for item_grids in by_item]
        return [part.clone() for part in torch.split(embeds, sizes)] if len(items) > 1 else [embeds]

    def dummy_item(self, num_embeds: int) -> MediaItem:
        """Black slices of the usual size, at least one, with `num_embeds` embeddings or a few fewer."""
        vision, count = self.config.vision, max(1, num_embeds // self.config.num_queries)
        side = self.config.scale_resolution // vision.patch_size
        pixels = np.zeros((count * side**2, 3 * vision.patch_size**2), dtype=np.uint8)
        return MediaItem("image", bytes(16), Span(0, count * self.config.num_queries), (side, side, count), pixels)


def slice_grids(item: MediaItem) -> list[Grid]:
    """(h, w) of each slice of an item, from its grid of (h, w, count) triples."""
    triples = zip(item.grid[0::3], item.grid[1::3], item.grid[2::3], strict=True)
    return [(h, w) for h, w, count in triples for _ in range(count)]
