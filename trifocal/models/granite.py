"""Granite 3: Llama with scales of its own on embeddings, attention, residuals and logits."""

from __future__ import annotations

from torch import Tensor

from trifocal.attention.base import AttentionSpec
from trifocal.distributed import SOLO, Group
from trifocal.errors import NotAvailableYetError
from trifocal.layers.embedding import ScaledEmbedding
from trifocal.model_spec import TextConfig, positive_number
from trifocal.models.decoder import Decoder
from trifocal.models.layer_spec import LayerSpec


class GraniteDecoder(Decoder):
    """The language model of Granite 3 (dense). Source: transformers' `modeling_granite.py`."""

    def __init__(self, config: TextConfig, group: Group = SOLO) -> None:
        super().__init__(config, group)
        scale = _field(config, "embedding_multiplier")
        self.embed_tokens = ScaledEmbedding(config.vocab_size, config.hidden_size, scale, group)
        self.logits_divisor = _field(config, "logits_scaling")

    def layer_spec(self, config: TextConfig, index: int) -> LayerSpec:
        for name in ("attention_bias", "mlp_bias"):
            if config.extra.get(name):
                raise NotAvailableYetError(f"config.json: {name} in a Granite decoder")
        return LayerSpec(
            rope=config.rope,
            attention=AttentionSpec(scale=_field(config, "attention_multiplier")),
            residual_scale=_field(config, "residual_multiplier"),
        )

    def logits(self, hidden: Tensor) -> Tensor:
        return super().logits(hidden) / self.logits_divisor


def _field(config: TextConfig, name: str) -> float:
    return positive_number(config.extra.get(name, 1.0), name)
