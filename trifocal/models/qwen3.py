"""Qwen3: a norm on each head of q and k, and no biases."""

from __future__ import annotations

from trifocal.attention.base import AttentionSpec
from trifocal.errors import NotAvailableYetError
from trifocal.model_spec import TextConfig
from trifocal.models.decoder import Decoder
from trifocal.models.layer_spec import LayerSpec
from trifocal.models.qwen2 import qwen_window


class Qwen3Decoder(Decoder):
    """The language model of Qwen3 (dense)."""

    def layer_spec(self, config: TextConfig, index: int) -> LayerSpec:
        if config.extra.get("attention_bias"):
            raise NotAvailableYetError("config.json: attention_bias in a Qwen3 decoder")
        return LayerSpec(rope=config.rope, attention=AttentionSpec(window=qwen_window(config, index)), qk_norm=True)
