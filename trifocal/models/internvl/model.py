"""InternVL: InternViT, pixel shuffle and a two-layer projector in front of one of several decoders."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from trifocal.distributed import SOLO, Group
from trifocal.layers.linear import Linear
from trifocal.model_spec import ModelSpec
from trifocal.models.base import Model
from trifocal.models.choose_decoder import make_decoder
from trifocal.models.decoder import split_rows
from trifocal.models.internvl.config import VisionConfig
from trifocal.models.internvl.vision import VisionTower
from trifocal.types import MediaItem, Span

_TILES_AT_ONCE = 8  # 8200 rows: enough to keep a device busy, and what a picture of 40 tiles takes stays bounded

# Checkpoint prefix -> ours, the first that fits: the original names, then transformers' (with and without `model.`).
_PREFIXES = (
    ("vision_model.embeddings.patch_embedding.", "visual.patch_embed."),
    ("vision_model.embeddings.", "visual."),
    ("vision_model.encoder.", "visual."),
    ("vision_tower.embeddings.patch_embeddings.projection.", "visual.patch_embed."),
    ("vision_tower.embeddings.cls_token", "visual.class_embedding"),
    ("vision_tower.embeddings.position_embeddings", "visual.position_embedding"),
    ("vision_tower.encoder.layer.", "visual.layers."),
    ("multi_modal_projector.layer_norm.", "mlp1.0."),
    ("multi_modal_projector.linear_1.", "mlp1.1."),
    ("multi_modal_projector.linear_2.", "mlp1.3."),
)
_WORDS = {  # of transformers' vision layers
    "attention": "attn",
    "projection_layer": "proj",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "lambda_1": "ls1",
    "lambda_2": "ls2",
}


class InternVL(Model):
    """InternVL 2, 2.5 and 3 in the original format, and their like in transformers' native one."""

    def __init__(self, spec: ModelSpec, group: Group = SOLO) -> None:
        super().__init__()
        config = VisionConfig.from_spec(spec)
        merged, hidden = config.hidden_size * config.merge**2, spec.text.hidden_size
        self.visual = VisionTower(config)
        self.mlp1 = nn.Sequential(
            nn.LayerNorm(merged), Linear(merged, hidden, bias=True), nn.GELU(), Linear(hidden, hidden, bias=True)
        )
        self.language_model = make_decoder(spec, group)

    def rename(self, name: str) -> str | None:
        """Our name of a checkpoint tensor, in all three spellings; None for one that is not needed."""
        name = name.removeprefix("model.")
        if name.startswith("lm_head.") or name.startswith("language_model."):
            ours = self.language_model.rename(name.removeprefix("language_model."))
            return None if ours is None else f"language_model.{ours}"
        if name == "vision_tower.embeddings.mask_token":
            return None  # for training only
        for prefix, ours in _PREFIXES:
            if name.startswith(prefix):
                rest = name.removeprefix(prefix)
                return ours + ".".join(_WORDS.get(word, word) for word in rest.split("."))
        return name

    def unpack(self, name: str, tensor: Tensor) -> Iterable[tuple[str, Tensor]]:
        """Also q, k and v of the original vision layers."""
        if ".attn.qkv." in name:
            width = self.visual.config.hidden_size
            return split_rows(name, tensor, {"q_proj": width, "k_proj": width, "v_proj": width})
        return super().unpack(name, tensor)

    def encode(self, items: Sequence[MediaItem]) -> list[Tensor]:
        """Embeddings of each item, [tiles * tokens_per_tile, hidden_size] for its grid (tiles, rows, columns).

        Each has memory of its own, so that a cache can drop one item without the others.
        """
        config, device = self.visual.config, self.language_model.embed_tokens.weight.device
        pixels = torch.from_numpy(np.concatenate([np.asarray(item.pixels) for item in items]))
        batches = torch.split(pixels, _TILES_AT_ONCE * config.grid**2)
        embeds = torch.cat([self.mlp1(self.visual(batch.to(device))) for batch in batches])
        sizes = [item.grid[0] * config.tokens_per_tile for item in items]
        return [part.clone() for part in torch.split(embeds, sizes)] if len(items) > 1 else [embeds]

    def dummy_item(self, num_embeds: int) -> MediaItem:
        """A black picture of as many tiles as make `num_embeds` embeddings, at least one."""
        config = self.visual.config
        grid = (max(1, num_embeds // config.tokens_per_tile), config.grid, config.grid)
        pixels = np.zeros((grid[0] * config.grid**2, 3 * config.patch_size**2), dtype=np.uint8)
        return MediaItem("image", bytes(16), Span(0, grid[0] * config.tokens_per_tile), grid, pixels)
