"""MiniCPM-2B: a Llama whose embeddings, residuals and logits are scaled, as its small forerunners were."""

from __future__ import annotations

import math

from torch import Tensor

from trifocal.errors import ConfigError
from trifocal.layers.embedding import Embedding
from trifocal.model_spec import TextConfig
from trifocal.models.decoder import Decoder, DecoderLayer


class ScaledEmbedding(Embedding):
    """A table whose rows are multiplied by `scale` when they are looked up, but not when they are the output layer."""

    def __init__(self, num_embeddings: int, size: int, scale: float) -> None:
        super().__init__(num_embeddings, size)
        self.factor = scale

    def forward(self, ids: Tensor) -> Tensor:
        """int64 [n] -> [n, size]."""
        return super().forward(ids) * self.factor


class MiniCPMDecoder(Decoder):
    """The language model of MiniCPM-2B (and of MiniCPM-V 2.0). Source: OpenBMB's `modeling_minicpm.py`.

    Each layer adds scale_depth / sqrt(layers) of what it computes, and the head sees hidden states divided by
    hidden_size / dim_model_base.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__(config, qkv_bias=False)
        self.embed_tokens = ScaledEmbedding(config.vocab_size, config.hidden_size, _field(config, "scale_emb"))
        self.residual_scale = _field(config, "scale_depth") / math.sqrt(config.num_layers)
        for layer in self.layers:
            assert isinstance(layer, DecoderLayer)
            layer.residual_scale = self.residual_scale
        self.head_divisor = config.hidden_size / _field(config, "dim_model_base")

    def logits(self, hidden: Tensor) -> Tensor:
        """[m, hidden_size] -> float32 [m, vocab_size]."""
        return super().logits(hidden / self.head_divisor)


def _field(config: TextConfig, name: str) -> float:
    value = config.extra.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise ConfigError(f"config.json: {name} must be a positive number in a MiniCPM model, got {value!r}")
    return float(value)
