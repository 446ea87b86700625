"""Qwen3: the shared decoder with a norm on each head of q and k, and no biases."""

from __future__ import annotations

from trifocal.errors import NotAvailableYetError
from trifocal.model_spec import TextConfig
from trifocal.models.decoder import Decoder


class Qwen3Decoder(Decoder):
    """The language model of Qwen3 (dense)."""

    def __init__(self, config: TextConfig) -> None:
        for name in ("attention_bias", "use_sliding_window"):
            if config.extra.get(name):
                raise NotAvailableYetError(f"config.json: {name} in a Qwen3 decoder")
        super().__init__(config, qkv_bias=False, qk_norm=True)
