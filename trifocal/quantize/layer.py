"""One decoder layer on the calibration samples: what goes into each of its linear layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trifocal.attention.base import AttentionBackend, AttentionBatch, KVCache
from trifocal.attention.reference import ReferenceAttention
from trifocal.errors import NotAvailableYetError
from trifocal.layers.linear import Linear
from trifocal.layers.mlp import GatedMLP
from trifocal.layers.norm import RMSNorm
from trifocal.model_spec import TextConfig
from trifocal.models.decoder import DecoderLayer, Tables


@dataclass(frozen=True)
class Step:
    """What every layer of a step shares: the tables of all rotary embeddings, and attention over all samples, whole."""

    tables: list[Tables]
    attention: AttentionBackend

    def attend(self, layer: DecoderLayer, normed: Tensor) -> Tensor:
        """The attention of a layer on the output of its norm."""
        out: Tensor = layer.self_attn(normed, self.tables[layer.rope], self.attention)
        return out


@dataclass(frozen=True)
class Recorded:
    """Inputs [tokens, in] of a layer's linear layers, and the layer's output [tokens, hidden_size]."""

    qkv: Tensor
    o: Tensor
    gate_up: Tensor
    down: Tensor
    output: Tensor


def attention_over(config: TextConfig, lengths: list[int], dtype: torch.dtype) -> AttentionBackend:
    """Attention of sequences that are computed whole in one step; all layers share the memory of one."""
    block = max(lengths)
    shape = (1, len(lengths), config.num_kv_heads, block, config.head_dim)
    one = KVCache.allocate(shape, dtype=dtype, device=torch.device("cpu"))
    cache = KVCache(*(each.expand(config.num_layers, -1, -1, -1, -1) for each in (one.keys, one.values)))
    slots = torch.cat([torch.arange(length) + index * block for index, length in enumerate(lengths)])
    attention = ReferenceAttention(cache)
    attention.begin(AttentionBatch(slots, torch.arange(len(lengths))[:, None], list(lengths), list(lengths)))
    return attention


def mlp_of(layer: DecoderLayer) -> GatedMLP:
    """The MLP of a layer. Raises `NotAvailableYetError` for one of another kind than the search for scales knows."""
    if not isinstance(layer.mlp, GatedMLP) or type(layer.input_layernorm) is not RMSNorm:
        raise NotAvailableYetError(
            "trifocal quantize for a language model with other norms or MLPs than Llama's (int8 and int4 "
            "work: --quantization)"
        )
    return layer.mlp


def record(layer: DecoderLayer, x: Tensor, step: Step) -> Recorded:
    """Run a layer on x [tokens, hidden_size]."""
    attention, mlp = layer.self_attn, mlp_of(layer)
    linears = {"qkv": attention.qkv_proj, "o": attention.o_proj, "gate_up": mlp.gate_up_proj, "down": mlp.down_proj}
    seen: dict[str, Tensor] = {}
    with _watched(linears, seen):
        x, delta = layer(x, None, step.tables[layer.rope], step.attention)
    return Recorded(**seen, output=x + delta * layer.spec.residual_scale)


@contextmanager
def _watched(linears: dict[str, Linear], seen: dict[str, Tensor]) -> Iterator[None]:
    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen[name] = inputs[0]

        return hook

    hooks = [linear.register_forward_pre_hook(watch(name)) for name, linear in linears.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
