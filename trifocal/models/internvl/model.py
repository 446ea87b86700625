"""InternVL: InternViT, pixel shuffle and a two-layer projector in front of one of several decoders."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from trifocal.attention.base import AttentionBackend
from trifocal.errors import ConfigError
from trifocal.layers.linear import Linear
from trifocal.model_spec import ModelSpec, TextConfig
from trifocal.models.base import Model, RunLayers, run_layers
from trifocal.models.decoder import Decoder, split_rows
from trifocal.models.internlm2 import InternLM2Decoder
from trifocal.models.internvl.config import VisionConfig
from trifocal.models.internvl.vision import VisionTower
from trifocal.models.llama import LlamaDecoder
from trifocal.models.loader import tensor_names
from trifocal.models.phi3 import Phi3Decoder
from trifocal.models.qwen2 import Qwen2Decoder
from trifocal.models.qwen3 import Qwen3Decoder
from trifocal.types import MediaItem, Span

_TILES_AT_ONCE = 8  # 8200 rows: enough to keep a device busy, and what a picture of 40 tiles takes stays bounded

_DECODERS: dict[str, Callable[[TextConfig], Decoder]] = {
    "internlm2": InternLM2Decoder,
    "llama": LlamaDecoder,
    "phi3": Phi3Decoder,
    "qwen2": Qwen2Decoder,
    "qwen3": Qwen3Decoder,
}
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

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        config = VisionConfig.from_spec(spec)
        merged, hidden = config.hidden_size * config.merge**2, spec.text.hidden_size
        self.visual = VisionTower(config)
        self.mlp1 = nn.Sequential(
            nn.LayerNorm(merged), Linear(merged, hidden, bias=True), nn.GELU(), Linear(hidden, hidden, bias=True)
        )
        self.language_model = _decoder(spec)

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
        """q, k and v of the original vision layers; whatever the decoder's checkpoints keep as one."""
        if name.startswith("language_model."):
            parts = self.language_model.unpack(name.removeprefix("language_model."), tensor)
            return [(f"language_model.{part}", values) for part, values in parts]
        if ".attn.qkv." in name:
            width = self.visual.config.hidden_size
            return split_rows(name, tensor, {"q_proj": width, "k_proj": width, "v_proj": width})
        return super().unpack(name, tensor)

    def embed(self, token_ids: Tensor) -> Tensor:
        """int64 [n] -> [n, hidden_size]."""
        out: Tensor = self.language_model.embed_tokens(token_ids)
        return out

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

    def forward(
        self,
        embeds: Tensor,
        positions: Tensor,
        attention: AttentionBackend,
        is_long: Tensor | None = None,
        run: RunLayers = run_layers,
    ) -> Tensor:
        """embeds [n, hidden_size], positions int64 [1, n] -> hidden states after the last norm."""
        hidden: Tensor = self.language_model(embeds, positions, attention, is_long, run)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """[m, hidden_size] -> float32 [m, vocab_size]."""
        return self.language_model.logits(hidden)


def _decoder(spec: ModelSpec) -> Decoder:
    """The decoder that llm_config or text_config names by architecture, or by model_type."""
    architectures = spec.text.extra.get("architectures")
    name = str(architectures[0] if isinstance(architectures, list) and architectures else spec.text.model_type)
    make = _DECODERS.get(name.removesuffix("ForCausalLM").lower())
    if make is None:
        raise ConfigError(
            f"config.json: a language model of kind {name!r} is not supported; supported: "
            f"{', '.join(sorted(_DECODERS))}"
        )
    return make(replace(spec.text, is_tied=_is_tied(spec)))


def _is_tied(spec: ModelSpec) -> bool:
    """Whether the embedding serves as output head: where the files hold no head.

    The flag alone cannot be trusted: it stands at the top level or in the language model's part depending on the
    release, is left out where it equals a default, and that default has changed. It counts if there are no files.
    """
    says = spec.hf_config.get("tie_word_embeddings", spec.text.extra.get("tie_word_embeddings"))
    names = tensor_names(Path(spec.path))
    if not names:
        return bool(says)
    has_head = any(name.endswith(("lm_head.weight", "language_model.output.weight")) for name in names)
    return not has_head and says is not False
