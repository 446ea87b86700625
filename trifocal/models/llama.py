"""Llama (2, 3, Yi) and Mistral, which is one with a sliding window."""

from __future__ import annotations

from trifocal.attention.base import AttentionSpec
from trifocal.errors import NotAvailableYetError
from trifocal.model_spec import TextConfig
from trifocal.models.decoder import Decoder
from trifocal.models.layer_spec import LayerSpec, is_sliding, sliding_window


class LlamaDecoder(Decoder):
    """The language model of Llama; Yi and InternLM2 differ in names only."""

    def layer_spec(self, config: TextConfig, index: int) -> LayerSpec:
        for name in ("attention_bias", "mlp_bias", "bias"):  # the last is InternLM2's word
            if config.extra.get(name):
                raise NotAvailableYetError(f"config.json: {name} in a Llama decoder")
        return LayerSpec(rope=config.rope)


class MistralDecoder(Decoder):
    """The language model of Mistral 7B and its kind; releases after the first have no window."""

    def layer_spec(self, config: TextConfig, index: int) -> LayerSpec:
        window = sliding_window(config) if is_sliding(config, index, default=True) else None
        return LayerSpec(rope=config.rope, attention=AttentionSpec(window=window))
