"""Phi-3: Llama with fused tensors, and LongRoPE in its long-context forms."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from trifocal.errors import NotAvailableYetError
from trifocal.model_spec import TextConfig
from trifocal.models.decoder import split_rows
from trifocal.models.llama import LlamaDecoder


class Phi3Decoder(LlamaDecoder):
    """The language model of Phi-3 mini."""

    def __init__(self, config: TextConfig) -> None:
        window = config.extra.get("sliding_window")
        if window and window < config.max_position_embeddings:  # the released 128k model has one that never bites
            raise NotAvailableYetError(f"config.json: sliding_window {window} within the context")
        if config.extra.get("partial_rotary_factor", 1.0) != 1.0:
            raise NotAvailableYetError("config.json: partial_rotary_factor")
        super().__init__(config)

    def unpack(self, name: str, tensor: Tensor) -> Iterable[tuple[str, Tensor]]:
        """`qkv_proj` is q, k and v in that order, `gate_up_proj` gate and up."""
        config = self.config
        if ".qkv_proj." in name:
            kv_size = config.num_kv_heads * config.head_dim
            sizes = {"q_proj": config.num_heads * config.head_dim, "k_proj": kv_size, "v_proj": kv_size}
            return split_rows(name, tensor, sizes)
        if ".gate_up_proj." in name:
            sizes = {"gate_proj": config.intermediate_size, "up_proj": config.intermediate_size}
            return split_rows(name, tensor, sizes)
        return super().unpack(name, tensor)
