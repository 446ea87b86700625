"""Qwen2: the shared decoder with biases on q, k and v."""

from __future__ import annotations

from trifocal.model_spec import TextConfig
from trifocal.models.decoder import Decoder


class Qwen2Decoder(Decoder):
    """The language model of Qwen2 and Qwen2.5 (and of their vision-language forms)."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__(config, qkv_bias=True)
