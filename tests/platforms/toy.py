"""A made-up device, as a plug-in would bring it: its own layouts of weights and of the KV cache, over torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from trifocal.attention.base import FULL, AttentionBackend, AttentionBatch, AttentionSpec, KVCacheSpec
from trifocal.attention.registry import ATTENTION
from trifocal.layers.linear import Linear, LinearMethod, register
from trifocal.layers.slots import Slot
from trifocal.platforms.cpu import CpuPlatform
from trifocal.quant.methods import LinearMethods


class Turned(LinearMethod):
    """weight [in, out]: the transpose of what checkpoints have."""

    num_products: ClassVar[int] = 0

    def create(self, layer: Linear, in_features: int, out_features: int, bias: bool) -> None:
        register(layer, "weight", torch.empty(in_features, out_features))
        register(layer, "bias", torch.empty(out_features) if bias else None)

    def slots(self, layer: Linear, start: int, size: int) -> dict[str, Slot]:
        return {name: each.t()[start : start + size] for name, each in layer.named_parameters(recurse=False)}

    def apply(self, layer: Linear, x: Tensor) -> Tensor:
        Turned.num_products += 1
        y = x @ layer.weight
        return y if layer.bias is None else y + layer.bias

    def look_up(self, layer: Linear, ids: Tensor) -> Tensor:
        return layer.weight[:, ids].t()


class ToyMethods(LinearMethods):
    """Plain weights are turned; of the quantized formats torch's are good enough."""

    name = "turned"

    def plain(self, layer: Linear) -> LinearMethod:
        return Turned()


@dataclass(frozen=True)
class Slots:
    """Keys and values [layers, slots, kv_heads, head_dim]: token by token."""

    keys: Tensor
    values: Tensor
    block_size: int


class ToyAttention(AttentionBackend):
    """A loop over sequences."""

    cache: Slots
    num_calls: ClassVar[int] = 0

    @classmethod
    def validate_configuration(cls, spec: KVCacheSpec) -> list[str]:
        reasons = ["it keeps no int8"] if spec.cache_dtype == torch.int8 else []
        return reasons if spec.layers == {FULL} else [*reasons, "every layer attends to all before it"]

    @classmethod
    def allocate(cls, spec: KVCacheSpec, num_blocks: int, device: torch.device) -> Slots:
        shape = (spec.num_layers, num_blocks * spec.block_size, spec.num_kv_heads, spec.head_dim)
        keys, values = (torch.empty(shape, dtype=spec.cache_dtype, device=device) for _ in range(2))
        return Slots(keys, values, spec.block_size)

    def begin(self, batch: AttentionBatch) -> None:
        self._batch = batch

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec = FULL) -> Tensor:
        assert spec == FULL
        ToyAttention.num_calls += 1
        batch, size = self._batch, self.cache.block_size
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        keys[batch.slots], values[batch.slots] = k, v
        outputs: list[Any] = []
        for index, (length, context) in enumerate(zip(batch.query_lens, batch.context_lens, strict=True)):
            where = torch.arange(context)
            slots = batch.block_tables[index][where // size] * size + where % size
            heads = q.shape[1] // k.shape[1]
            mine = q[sum(batch.query_lens[:index]) :][:length]
            seen, kept = (each[slots].repeat_interleave(heads, dim=1) for each in (keys, values))
            scores = torch.einsum("qhd,khd->hqk", mine, seen) * q.shape[2] ** -0.5
            ahead = torch.ones(length, context).triu(context - length + 1).bool()
            outputs.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(ahead, -torch.inf).softmax(-1), kept))
        return torch.cat(outputs)


class ToyPlatform(CpuPlatform):
    """Registered under the name of its plug-in's device."""

    default_attention = "toy"

    def linear_methods(self) -> LinearMethods:
        return ToyMethods()


ATTENTION.register("toy", f"{__name__}:ToyAttention")
