"""MiniCPM-2B: a Llama whose embeddings, residuals and logits are scaled, as its small forerunners were."""

from __future__ import annotations

import math

from torch import Tensor

from trifocal.distributed import SOLO, Group
from trifocal.errors import ConfigError
from trifocal.layers.embedding import ScaledEmbedding
from trifocal.model_spec import TextConfig
from trifocal.models.decoder import Decoder
from trifocal.models.layer_spec import LayerSpec


class MiniCPMDecoder(Decoder):
    """The language model of MiniCPM-2B (and of MiniCPM-V 2.0). Source: OpenBMB's `modeling_minicpm.py`.

    Each layer adds scale_depth / sqrt(layers) of what it computes, and the head sees hidden states divided by
    hidden_size / dim_model_base.
    """

    def __init__(self, config: TextConfig, group: Group = SOLO) -> None:
        super().__init__(config, group)
        self.embed_tokens = ScaledEmbedding(config.vocab_size, config.hidden_size, _field(config, "scale_emb"), group)
        self.head_divisor = config.hidden_size / _field(config, "dim_model_base")

    def layer_spec(self, config: TextConfig, index: int) -> LayerSpec:
        return LayerSpec(rope=config.rope, residual_scale=_field(config, "scale_depth") / math.sqrt(config.num_layers))

    def logits(self, hidden: Tensor) -> Tensor:
        return super().logits(hidden / self.head_divisor)


def _field(config: TextConfig, name: str) -> float:
    value = config.extra.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise ConfigError(f"config.json: {name} must be a positive number in a MiniCPM model, got {value!r}")
    return float(value)
