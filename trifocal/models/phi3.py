"""Phi-3: Llama with fused tensors, a sliding window, and LongRoPE in its long-context forms."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from trifocal.attention.base import AttentionSpec
from trifocal.errors import NotAvailableYetError
from trifocal.model_spec import TextConfig
from trifocal.models.decoder import Decoder, split_rows
from trifocal.models.layer_spec import LayerSpec, sliding_window


class Phi3Decoder(Decoder):
    """The language model of Phi-3 mini."""

    def layer_spec(self, config: TextConfig, index: int) -> LayerSpec:
        for name in ("attention_bias", "mlp_bias"):
            if config.extra.get(name):
                raise NotAvailableYetError(f"config.json: {name} in a Phi-3 decoder")
        if config.extra.get("partial_rotary_factor", 1.0) != 1.0:
            raise NotAvailableYetError("config.json: partial_rotary_factor")
        return LayerSpec(rope=config.rope, attention=AttentionSpec(window=sliding_window(config)))

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
