"""Gemma 3's language model: windows on five layers of six, two ropes, norms on both sides of attention and MLP."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from trifocal.attention.base import AttentionSpec
from trifocal.distributed import SOLO, Group
from trifocal.errors import NotAvailableYetError
from trifocal.layers.embedding import ScaledEmbedding
from trifocal.layers.mlp import GatedMLP
from trifocal.layers.norm import RMSNorm
from trifocal.model_spec import RopeConfig, TextConfig, positive_int, positive_number, rope_config
from trifocal.models.decoder import Decoder
from trifocal.models.layer_spec import LayerSpec, is_sliding, sliding_window

_NOT_DONE = ("attention_bias", "attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention")
_NAMES = {  # theirs -> ours; the norm before the MLP has Llama's name here
    "post_attention_layernorm": "attention_output_norm",
    "pre_feedforward_layernorm": "post_attention_layernorm",
    "post_feedforward_layernorm": "mlp_output_norm",
}


class Gemma3Norm(RMSNorm):
    """A norm whose weight is what is added to 1; in float32 to the end, where Llama's rounds before it multiplies."""

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * (1 + self.weight.float())).to(x.dtype)

    def add(self, x: Tensor, delta: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
        total = x + delta * scale
        return total, self(total)

    def heads(self, x: Tensor, num_first: int, other: RMSNorm) -> Tensor:
        """x [n, heads, d] -> each head normed: the first ones by this norm, the rest by `other`."""
        return torch.cat((self(x[:, :num_first]), other(x[:, num_first:])), dim=1)


class Gemma3Decoder(Decoder):
    """The language model of Gemma 3. Source: transformers' `modeling_gemma3.py`."""

    def __init__(self, config: TextConfig, group: Group = SOLO) -> None:
        super().__init__(config, group)
        # Rounded as theirs.
        scale = torch.tensor(math.sqrt(config.hidden_size), dtype=torch.get_default_dtype(), device="cpu")
        self.embed_tokens = ScaledEmbedding(config.vocab_size, config.hidden_size, scale.item(), group)

    def layer_spec(self, config: TextConfig, index: int) -> LayerSpec:
        for name in _NOT_DONE:
            if config.extra.get(name):
                raise NotAvailableYetError(f"config.json: {name} in a Gemma 3 decoder")
        pattern = positive_int(config.extra.get("sliding_window_pattern", 6), "sliding_window_pattern")
        slides = is_sliding(config, index, default=(index + 1) % pattern != 0)
        scalar = positive_number(config.extra.get("query_pre_attn_scalar", 256), "query_pre_attn_scalar")
        return LayerSpec(
            rope=_rope(config, slides=slides),
            attention=AttentionSpec(window=sliding_window(config) if slides else None, scale=scalar**-0.5),
            qk_norm=True,
            norm=Gemma3Norm,
            has_output_norms=True,
            mlp=_mlp,
        )

    def rename(self, name: str) -> str | None:
        ours = super().rename(name)
        return None if ours is None else ".".join(_NAMES.get(word, word) for word in ours.split("."))


def _mlp(config: TextConfig, group: Group) -> nn.Module:
    activation = str(config.extra.get("hidden_activation", "gelu_pytorch_tanh"))
    return GatedMLP(config.hidden_size, config.intermediate_size, activation, group=group)


def _rope(config: TextConfig, *, slides: bool) -> RopeConfig:
    """Of layers with a window, which turn faster and are never stretched, or of the others.

    transformers 5 writes one `rope_parameters` for each kind; released files have `rope_local_base_freq`.
    """
    given = config.extra.get("rope_parameters")
    if isinstance(given, Mapping) and any(isinstance(each, Mapping) for each in given.values()):
        own = given.get("sliding_attention" if slides else "full_attention") or {}
        return rope_config({"rope_theta": 10000.0 if slides else 1e6, **config.extra, "rope_parameters": own})
    if slides:
        theta = positive_number(config.extra.get("rope_local_base_freq", 10000.0), "rope_local_base_freq")
        return RopeConfig(theta=theta)
    return rope_config({"rope_theta": 1e6, **config.extra})
