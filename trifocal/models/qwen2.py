"""Qwen2: the shared decoder with biases on q, k and v."""

from __future__ import annotations

from trifocal.errors import NotAvailableYetError
from trifocal.model_spec import TextConfig
from trifocal.models.decoder import Decoder


class Qwen2Decoder(Decoder):
    """The language model of Qwen2 and Qwen2.5 (and of their vision-language forms)."""

    def __init__(self, config: TextConfig) -> None:
        if config.extra.get("use_sliding_window"):  # the released files carry a window and switch it off
            raise NotAvailableYetError("config.json: use_sliding_window")
        super().__init__(config, qkv_bias=True)
