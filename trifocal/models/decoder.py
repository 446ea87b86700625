"""The decoder of language models, put together from a `LayerSpec` a layer; each architecture writes its specs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from trifocal.attention.base import AttentionBackend, KVCacheSpec
from trifocal.distributed import SOLO, Group, share
from trifocal.errors import ConfigError, NotAvailableYetError
from trifocal.layers.embedding import Embedding, OutputHead
from trifocal.layers.linear import Heads, MergedLinear, RowLinear
from trifocal.layers.norm import RMSNorm
from trifocal.layers.rotary import RotaryEmbedding, Rotate
from trifocal.model_spec import RopeConfig, TextConfig
from trifocal.models.layer_spec import LayerSpec

Tables = tuple[Tensor, Tensor]  # cos and sin, [n, 1, head_dim / 2] each


class RunLayers(Protocol):
    """How a decoder's layers are run: `layers(*inputs)`, or a recording of that for inputs of the same shapes."""

    def __call__(self, layers: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """The result may lie in memory that the next call writes to."""
        ...


def run_layers(layers: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Python runs them."""
    return layers(*inputs)


class SelfAttention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: TextConfig, index: int, spec: LayerSpec, group: Group) -> None:
        super().__init__()
        self.index, self.spec = index, spec.attention
        self.head_dim = config.head_dim
        # Those of this rank. Key heads are repeated where ranks are more.
        self.num_heads = share(config.num_heads, group, "attention heads")[1]
        self.num_kv_heads = local_kv_heads(config, group)
        heads, kv_heads = Heads(config.num_heads, config.head_dim), Heads(config.num_kv_heads, config.head_dim)
        parts = {"q_proj": heads, "k_proj": kv_heads, "v_proj": kv_heads}
        self.qkv_proj = MergedLinear(config.hidden_size, parts, bias=spec.qkv_bias, group=group)
        self.o_proj = RowLinear(config.num_heads * config.head_dim, config.hidden_size, bias=False, group=group)
        self.rotate = Rotate()
        self.q_norm = spec.norm(config.head_dim, config.rms_norm_eps) if spec.qk_norm else None
        self.k_norm = spec.norm(config.head_dim, config.rms_norm_eps) if spec.qk_norm else None

    def forward(self, x: Tensor, tables: Tables, attention: AttentionBackend) -> Tensor:
        """x [n, hidden_size] -> [n, hidden_size]."""
        rows, heads, kv_heads = x.shape[0], self.num_heads, self.num_kv_heads
        qkv = self.qkv_proj(x).view(rows, -1, self.head_dim)
        qk, v = qkv.narrow(1, 0, heads + kv_heads), qkv.narrow(1, heads + kv_heads, kv_heads)
        if self.q_norm is not None and self.k_norm is not None:
            qk = self.q_norm.heads(qk, heads, self.k_norm)
        qk = self.rotate(qk, *tables)
        q, k = qk.narrow(1, 0, heads), qk.narrow(1, heads, kv_heads)
        out: Tensor = self.o_proj(attention(self.index, q, k, v, self.spec).reshape(rows, -1))
        return out


class DecoderLayer(nn.Module):
    """Attention and MLP, each behind a norm and beside a residual, as `spec` says.

    `rope` is the number of its rotary embedding among the decoder's.
    """

    def __init__(self, config: TextConfig, index: int, spec: LayerSpec, rope: int, group: Group) -> None:
        super().__init__()
        self.spec, self.rope = spec, rope

        def norm() -> RMSNorm:
            return spec.norm(config.hidden_size, config.rms_norm_eps)

        self.input_layernorm = norm()
        self.self_attn = SelfAttention(config, index, spec, group)
        self.attention_output_norm = norm() if spec.has_output_norms else None
        self.post_attention_layernorm = norm()  # Llama's name of the norm before the MLP
        self.mlp = spec.mlp(config, group)
        self.mlp_output_norm = norm() if spec.has_output_norms else None

    def forward(
        self, x: Tensor, delta: Tensor | None, tables: Tables, attention: AttentionBackend
    ) -> tuple[Tensor, Tensor]:
        """x [n, hidden_size] and what the layer before adds to it, likewise -> the same for the next layer."""
        if delta is None:
            normed = self.input_layernorm(x)
        else:
            x, normed = self.input_layernorm.add(x, delta, self.spec.residual_scale)
        delta = self.self_attn(normed, tables, attention)
        if self.attention_output_norm is not None:
            delta = self.attention_output_norm(delta)
        x, normed = self.post_attention_layernorm.add(x, delta, self.spec.residual_scale)
        delta = self.mlp(normed)
        if self.mlp_output_norm is not None:
            delta = self.mlp_output_norm(delta)
        return x, delta


class Decoder(nn.Module, ABC):
    """Token embedding, layers, last norm and output head. `lm_head` is absent where weights are tied.

    Each rank of `group` has its share of every linear layer and of the heads, and all of the norms. `config` says how
    large the whole is. Raises `ConfigError` where the ranks cannot share it.
    """

    def __init__(self, config: TextConfig, group: Group = SOLO) -> None:
        super().__init__()
        self.config, self.group = config, group
        self.specs = [self.layer_spec(config, index) for index in range(config.num_layers)]
        if not all(spec.attention.is_causal_in_media for spec in self.specs):
            raise NotAvailableYetError(f"attention in both directions within pictures ({type(self).__name__})")
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, group)
        ropes: list[RopeConfig] = []
        self.layers = nn.ModuleList()
        for index, spec in enumerate(self.specs):
            if spec.rope not in ropes:
                ropes.append(spec.rope)
            self.layers.append(DecoderLayer(config, index, spec, ropes.index(spec.rope), group))
        self.norm = self.specs[-1].norm(config.hidden_size, config.rms_norm_eps)
        self.rotaries = nn.ModuleList(RotaryEmbedding(rope, config.head_dim) for rope in ropes)
        self.lm_head = None if config.is_tied else OutputHead(config.hidden_size, config.vocab_size, group)

    @abstractmethod
    def layer_spec(self, config: TextConfig, index: int) -> LayerSpec:
        """What layer `index` is made of. Raises `ConfigError` for what the architecture does not support."""

    def rename(self, name: str) -> str | None:
        """Our name of a tensor of the causal language model (`model.layers…`, `lm_head.weight`); None: not needed."""
        if name == "lm_head.weight" and self.lm_head is None:
            return None  # a copy of the tied embedding
        return name.removeprefix("model.")

    def unpack(self, name: str, tensor: Tensor) -> Iterable[tuple[str, Tensor]]:
        """See `Model.unpack`; names are those that `rename` gives."""
        return ((name, tensor),)

    def tables(self, positions: Tensor, dtype: torch.dtype, is_long: Tensor | None = None) -> list[Tables]:
        """Cosines and sines of each rotary embedding for positions int64 [rows, n]; see `RotaryEmbedding`."""
        return [rotary(positions, dtype, is_long) for rotary in self.rotaries]

    def forward(
        self,
        embeds: Tensor,
        positions: Tensor,
        attention: AttentionBackend,
        is_long: Tensor | None = None,
        run: RunLayers = run_layers,
    ) -> Tensor:
        """embeds [n, hidden_size], positions int64 [rows, n], is_long bool [n] -> hidden states after the last norm."""

        def layers(x: Tensor, *tables: Tensor) -> Tensor:
            delta = None
            for layer in self.layers:
                assert isinstance(layer, DecoderLayer)
                cos, sin = tables[2 * layer.rope : 2 * layer.rope + 2]
                x, delta = layer(x, delta, (cos, sin), attention)
            assert delta is not None, "there is a layer"
            return self.norm.add(x, delta, self.specs[-1].residual_scale)[1]

        tables = self.tables(positions, embeds.dtype, is_long)
        return run(layers, embeds, *(each for pair in tables for each in pair))

    def kv_cache_spec(self, *, block_size: int, dtype: torch.dtype, cache_dtype: torch.dtype) -> KVCacheSpec:
        """What this rank's KV cache holds; `dtype` is that of activations."""
        return KVCacheSpec(
            num_layers=self.config.num_layers,
            num_kv_heads=local_kv_heads(self.config, self.group),
            head_dim=self.config.head_dim,
            block_size=block_size,
            dtype=dtype,
            cache_dtype=cache_dtype,
            layers=frozenset(spec.attention for spec in self.specs),
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """[m, hidden_size] -> float32 [m, vocab_size] on rank 0; other ranks have their own tokens' alone."""
        scores = self.embed_tokens.as_head(hidden) if self.lm_head is None else self.lm_head(hidden)
        return scores.float()


def local_kv_heads(config: TextConfig, group: Group) -> int:
    """How many key and value heads a rank has. Raises `ConfigError` where ranks cannot have equally many."""
    return share(config.num_kv_heads, group, "key and value heads", may_repeat=True)[1]


def split_rows(name: str, tensor: Tensor, sizes: Mapping[str, int]) -> Iterable[tuple[str, Tensor]]:
    """A fused tensor, e.g. `….qkv_proj.weight`, as the siblings in `sizes`, of so many rows each."""
    parent, _, parameter = name.rpartition(".")
    if sum(sizes.values()) != len(tensor):
        raise ConfigError(f"tensor {name} has {len(tensor)} rows, config.json asks for {sum(sizes.values())}")
    parent = parent.rpartition(".")[0]
    parts = torch.split(tensor, list(sizes.values()))
    return [(f"{parent}.{part}.{parameter}", rows) for part, rows in zip(sizes, parts, strict=True)]
