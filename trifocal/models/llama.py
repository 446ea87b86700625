"""Llama (2, 3, Yi): the shared decoder as it is."""

from __future__ import annotations

from trifocal.errors import NotAvailableYetError
from trifocal.model_spec import TextConfig
from trifocal.models.decoder import Decoder


class LlamaDecoder(Decoder):
    """The language model of Llama; Yi and InternLM2 differ in names only."""

    def __init__(self, config: TextConfig) -> None:
        for name in ("attention_bias", "mlp_bias", "bias"):  # the last is InternLM2's word
            if config.extra.get(name):
                raise NotAvailableYetError(f"config.json: {name} in a Llama decoder")
        super().__init__(config, qkv_bias=False)
