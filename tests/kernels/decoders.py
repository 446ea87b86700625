"""Small decoders with random weights, and random steps for them: what is captured is compared with what is not."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from trifocal.attention.base import AttentionBatch, KVCache
from trifocal.attention.cpu import CpuAttention
from trifocal.kernels.cpu.capture import CpuGraphs
from trifocal.kernels.cpu.library import Library
from trifocal.kernels.cpu.ops import CpuKernels
from trifocal.layers.base import use_kernels
from trifocal.layers.linear import PLAIN, Linear, LinearMethod
from trifocal.model_spec import RopeConfig, TextConfig
from trifocal.models.decoder import Decoder
from trifocal.models.qwen2 import Qwen2Decoder
from trifocal.platforms.cpu_linear import BlocksLinear, Int8BlocksLinear
from trifocal.quant.int4 import Int4Linear
from trifocal.worker.graphs import GraphRunner

CONFIG = TextConfig(
    model_type="qwen2", hidden_size=64, intermediate_size=96, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=16,
    vocab_size=40, rms_norm_eps=1e-6, max_position_embeddings=512, is_tied=True, hidden_act="silu", rope=RopeConfig(),
)  # fmt: skip
Method = LinearMethod | Callable[[CpuKernels], LinearMethod]
FORMATS: list[tuple[torch.dtype, Method]] = [
    (torch.float32, PLAIN),
    (torch.bfloat16, BlocksLinear),
    (torch.bfloat16, Int8BlocksLinear),
    (torch.float32, Int8BlocksLinear),
]
FORMATS += [(torch.bfloat16, Int4Linear(32))]


def decoder(kernels: CpuKernels, dtype: torch.dtype, method: Method, kind: type[Decoder] = Qwen2Decoder) -> Decoder:
    """Random weights."""
    generator = torch.Generator().manual_seed(1)
    torch.set_default_dtype(dtype)
    try:
        made = kind(CONFIG)
        for module in made.modules():
            if isinstance(module, Linear):
                module.use(method if isinstance(method, LinearMethod) else method(kernels))
    finally:
        torch.set_default_dtype(torch.float32)
    for module in made.modules():
        slots = module.weight_slots() if isinstance(module, Linear) else dict(module.named_parameters(recurse=False))
        for slot in slots.values():
            slot.copy_(torch.randn(slot.shape, generator=generator).to(dtype) / 4)
    use_kernels(made, kernels)
    return made


class TextModel(nn.Module):
    """As much of a `Model` as running its layers takes."""

    position_rows = 1

    def __init__(self, made: Decoder) -> None:
        super().__init__()
        self.made = made

    def merge(self, token_ids: Tensor) -> tuple[Tensor, ...]:
        return (self.made.embed_tokens(token_ids),)

    def forward(self, inputs: tuple[Tensor, ...], *rest: Any) -> Tensor:
        hidden: Tensor = self.made(*inputs, *rest)
        return hidden


class Steps:
    """The same random steps for whoever asks."""

    def __init__(
        self, made: Decoder, dtype: torch.dtype, library: Library, capture_sizes: tuple[int, ...] = (), blocks: int = 20
    ) -> None:
        """Sequences get blocks 0 to 19, the block behind the first `blocks` is scratch."""
        shape = (CONFIG.num_layers, blocks + 1, CONFIG.num_kv_heads, 16, CONFIG.head_dim)
        self.attention = CpuAttention(KVCache.allocate(shape, dtype=dtype, device=torch.device("cpu")))
        self.graphs = GraphRunner(TextModel(made), self.attention, CpuGraphs(library), capture_sizes, blocks)  # type: ignore[arg-type]
        for kept in (self.attention.cache.keys, self.attention.cache.values):
            kept.copy_(torch.randn(shape, generator=torch.Generator().manual_seed(2)))
        self.dtype = dtype

    def step(self, seed: int, query_lens: list[int]) -> Tensor:
        """Sequences of random lengths in blocks of their own."""
        rng = random.Random(seed)
        contexts = [min(length + rng.randrange(60), 80) for length in query_lens]
        tables = torch.tensor([rng.sample(range(5 * index, 5 * index + 5), 5) for index in range(len(query_lens))])
        wheres = [torch.arange(end - length, end) for length, end in zip(query_lens, contexts, strict=True)]
        slots = torch.cat([table[where // 16] * 16 + where % 16 for table, where in zip(tables, wheres, strict=True)])
        embeds = torch.randn(len(slots), CONFIG.hidden_size, generator=torch.Generator().manual_seed(seed))
        batch = AttentionBatch(slots, tables, query_lens, contexts)
        return self.graphs((embeds.to(self.dtype),), torch.cat(wheres)[None], batch).clone()
