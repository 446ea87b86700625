"""The decoder that Llama and its relatives share; a family says where its biases are and little else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from trifocal.attention.base import AttentionBackend
from trifocal.errors import ConfigError
from trifocal.layers.embedding import Embedding
from trifocal.layers.linear import GatedLinear, Linear, MergedLinear
from trifocal.layers.norm import RMSNorm, norm_heads
from trifocal.layers.rotary import RotaryEmbedding, Rotate
from trifocal.model_spec import TextConfig
from trifocal.models.base import RunLayers, run_layers


class SelfAttention(nn.Module):
    """Grouped-query attention with rotary positions; `qk_norm` norms each head of q and k before they are turned."""

    def __init__(self, config: TextConfig, index: int, *, qkv_bias: bool, qk_norm: bool) -> None:
        super().__init__()
        self.index = index
        self.head_dim = config.head_dim
        self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads
        heads, kv_heads = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        parts = {"q_proj": heads, "k_proj": kv_heads, "v_proj": kv_heads}
        self.qkv_proj = MergedLinear(config.hidden_size, parts, bias=qkv_bias)
        self.o_proj = Linear(heads, config.hidden_size, bias=False)
        self.rotate = Rotate()
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps) if qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps) if qk_norm else None

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attention: AttentionBackend) -> Tensor:
        """x [n, hidden_size], cos and sin [n, 1, head_dim / 2] -> [n, hidden_size]."""
        rows, heads, kv_heads = x.shape[0], self.num_heads, self.num_kv_heads
        qkv = self.qkv_proj(x).view(rows, -1, self.head_dim)
        qk, v = qkv.narrow(1, 0, heads + kv_heads), qkv.narrow(1, heads + kv_heads, kv_heads)
        if self.q_norm is not None and self.k_norm is not None:
            qk = norm_heads(qk, heads, self.q_norm, self.k_norm)
        qk = self.rotate(qk, cos, sin)
        q, k = qk.narrow(1, 0, heads), qk.narrow(1, heads, kv_heads)
        out: Tensor = self.o_proj(attention(self.index, q, k, v).reshape(rows, -1))
        return out


class GatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, hidden_size: int, intermediate_size: int, *, bias: bool) -> None:
        super().__init__()
        parts = {"gate_proj": intermediate_size, "up_proj": intermediate_size}
        self.gate_up_proj = GatedLinear(hidden_size, parts, bias=bias)
        self.down_proj = Linear(intermediate_size, hidden_size, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[n, hidden_size] -> [n, hidden_size]."""
        out: Tensor = self.down_proj(self.gate_up_proj(x))
        return out


class DecoderLayer(nn.Module):
    """Attention and MLP, each behind a norm and beside a residual; `residual_scale` weighs what they add to it."""

    residual_scale: float = 1.0

    def __init__(self, config: TextConfig, index: int, *, qkv_bias: bool, qk_norm: bool) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = SelfAttention(config, index, qkv_bias=qkv_bias, qk_norm=qk_norm)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size, bias=False)

    def forward(
        self, x: Tensor, made: Tensor | None, cos: Tensor, sin: Tensor, attention: AttentionBackend
    ) -> tuple[Tensor, Tensor]:
        """x [n, hidden_size] and what the layer before adds to it, likewise -> the same for the next layer."""
        if made is None:
            normed = self.input_layernorm(x)
        else:
            x, normed = self.input_layernorm.add(x, made, self.residual_scale)
        attended = self.self_attn(normed, cos, sin, attention)
        x, normed = self.post_attention_layernorm.add(x, attended, self.residual_scale)
        return x, self.mlp(normed)


class Decoder(nn.Module):
    """Token embedding, layers, last norm and output head. `lm_head` is absent where weights are tied."""

    residual_scale: float = 1.0  # that of all layers

    def __init__(self, config: TextConfig, *, qkv_bias: bool, qk_norm: bool = False) -> None:
        super().__init__()
        self.config = config
        if config.hidden_act != "silu":
            raise ConfigError(f"config.json: hidden_act {config.hidden_act!r} is not supported; supported: silu")
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            DecoderLayer(config, index, qkv_bias=qkv_bias, qk_norm=qk_norm) for index in range(config.num_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary = RotaryEmbedding(config.rope, config.head_dim)
        self.lm_head = None if config.is_tied else Linear(config.hidden_size, config.vocab_size, bias=False)

    def rename(self, name: str) -> str | None:
        """Our name of a tensor of the causal language model (`model.layers…`, `lm_head.weight`); None: not needed."""
        if name == "lm_head.weight" and self.lm_head is None:
            return None  # a copy of the tied embedding
        return name.removeprefix("model.")

    def unpack(self, name: str, tensor: Tensor) -> Iterable[tuple[str, Tensor]]:
        """See `Model.unpack`; names are those that `rename` gives."""
        return ((name, tensor),)

    def forward(
        self,
        embeds: Tensor,
        positions: Tensor,
        attention: AttentionBackend,
        is_long: Tensor | None = None,
        run: RunLayers = run_layers,
    ) -> Tensor:
        """embeds [n, hidden_size], positions int64 [rows, n], is_long bool [n] -> hidden states after the last norm."""

        def layers(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
            made = None
            for layer in self.layers:
                x, made = layer(x, made, cos, sin, attention)
            assert made is not None, "there is a layer"
            return self.norm.add(x, made, self.residual_scale)[1]

        return run(layers, embeds, *self.rotary(positions, embeds.dtype, is_long))

    def logits(self, hidden: Tensor) -> Tensor:
        """[m, hidden_size] -> float32 [m, vocab_size]."""
        scores = self.embed_tokens.as_head(hidden) if self.lm_head is None else self.lm_head(hidden)
        return scores.float()


def split_rows(name: str, tensor: Tensor, sizes: Mapping[str, int]) -> Iterable[tuple[str, Tensor]]:
    """A fused tensor, e.g. `….qkv_proj.weight`, as the siblings in `sizes`, of so many rows each."""
    parent, _, parameter = name.rpartition(".")
    if sum(sizes.values()) != len(tensor):
        raise ConfigError(f"tensor {name} has {len(tensor)} rows, config.json asks for {sum(sizes.values())}")
    parent = parent.rpartition(".")[0]
    parts = torch.split(tensor, list(sizes.values()))
    return [(f"{parent}.{part}.{parameter}", rows) for part, rows in zip(sizes, parts, strict=True)]
