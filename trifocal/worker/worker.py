"""One worker: one device with its share of the model and of the KV cache."""

from __future__ import annotations

from time import perf_counter

import torch
from torch import Tensor

from trifocal.attention.base import AttentionBackend, AttentionBatch, KVCache
from trifocal.attention.registry import ATTENTION
from trifocal.config import EngineConfig
from trifocal.errors import ConfigError
from trifocal.executor.base import Capacity
from trifocal.log import get_logger
from trifocal.models.loader import load_model
from trifocal.platforms import get_platform
from trifocal.types import StepPlan, StepResult
from trifocal.worker.model_runner import ModelRunner
from trifocal.worker.sampler import Sampler

logger = get_logger(__name__)
_GIB = 1 << 30


class Worker:
    """Loads weights, measures memory, allocates the KV cache; then executes plans.

    Raises `ConfigError` where the checkpoint or the memory does not do.
    """

    @torch.inference_mode()
    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.platform = get_platform(config.device)
        self.device = self.platform.device()
        self.dtype: torch.dtype = getattr(torch, config.dtype)
        self.cache_dtype: torch.dtype = getattr(torch, config.kv_cache_dtype)
        started = perf_counter()
        self.model = load_model(
            config.spec,
            dtype=self.dtype,
            device=self.device,
            load_format=config.load_format,
            seed=config.seed,
            progress=True,
            quantization=config.quantization,
            kernels=self.platform.kernels(),
        )
        how = f", linear layers in {config.quantization.method}" if config.quantization else ""
        logger.info("weights loaded in %.1f s (%s%s, %s)", perf_counter() - started, config.dtype, how, self.device)
        num_blocks = self._num_blocks()
        self.capacity = Capacity(
            num_blocks=num_blocks,
            max_model_len=self._max_model_len(num_blocks),
            bytes_per_embed=config.spec.text.hidden_size * self.dtype.itemsize,
        )
        cache = self._cache(num_blocks)
        attention = ATTENTION.get(self.platform.default_attention)(cache, config.capture_sizes)
        started = perf_counter()
        attention.capture(lambda num_tokens: self._dummy_pass(attention, num_tokens))
        logger.info("steps captured in %.1f s (--enforce-eager: none are)", perf_counter() - started)
        sampler = Sampler(config.num_vocab, self.platform.kernels())
        self.runner = ModelRunner(self.model, attention, sampler, self.platform)

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> StepResult:
        """Run one step."""
        return self.runner.execute(plan)

    # ------------------------------------------------------------------------------------------ memory

    def _cache(self, num_blocks: int) -> KVCache:
        text = self.config.spec.text
        shape = (text.num_layers, num_blocks, text.num_kv_heads, self.config.block_size, text.head_dim)
        return KVCache.allocate(shape, dtype=self.cache_dtype, device=self.device)

    def _num_blocks(self) -> int:
        config, text = self.config, self.config.spec.text
        if config.num_blocks_override is not None:
            return config.num_blocks_override
        activation = self._profile_peak()
        num_bytes = self.platform.kv_cache_bytes(config.gpu_memory_utilization, activation)
        per_head = KVCache.bytes_per_head(text.head_dim, self.cache_dtype)
        per_block = text.num_layers * text.num_kv_heads * per_head * config.block_size
        most = config.max_num_seqs * -(-config.max_model_len // config.block_size)
        num_blocks = min(num_bytes // per_block, most)
        logger.info(
            "KV cache: %d blocks of %d tokens in %s, %.2f GiB for %d tokens. Measured: peak of activations %.2f GiB, "
            "memory left for KV %.2f GiB. More or less: --gpu-memory-utilization (now %g)%s",
            num_blocks,
            config.block_size,
            config.kv_cache_dtype,
            num_blocks * per_block / _GIB,
            num_blocks * config.block_size,
            activation / _GIB,
            num_bytes / _GIB,
            config.gpu_memory_utilization,
            ", on a CPU TRIFOCAL_CPU_KVCACHE_SPACE (GiB)" if config.device == "cpu" else "",
        )
        if num_blocks < 1:
            raise ConfigError(
                f"no memory is left for the KV cache ({num_bytes} bytes, one block takes {per_block}): raise "
                "--gpu-memory-utilization, lower --max-num-batched-tokens, or take --kv-cache-dtype int8 or a smaller "
                "model"
            )
        return num_blocks

    def _max_model_len(self, num_blocks: int) -> int:
        config = self.config
        room = num_blocks * config.block_size
        if room >= config.max_model_len:
            return config.max_model_len
        if config.is_max_model_len_explicit:
            raise ConfigError(
                f"--max-model-len {config.max_model_len} does not fit: the KV cache has room for {room} tokens; lower "
                "it, or raise --gpu-memory-utilization (TRIFOCAL_CPU_KVCACHE_SPACE on a CPU)"
            )
        logger.warning("max_model_len is %d, what the KV cache holds (the model allows %d)", room, config.max_model_len)
        return room

    def _profile_peak(self) -> int:
        """Bytes that a full step may take beside weights and KV cache, measured on dummy input.

        Where a full step would take long (CPU) a smaller one is measured and scaled: memory grows with its tokens.
        """
        budget = min(self.config.max_num_batched_tokens, self.config.max_model_len)
        num_tokens = min(budget, self.platform.max_profile_tokens or budget)
        cache = self._cache(-(-num_tokens // self.config.block_size))
        attention = ATTENTION.get(self.platform.default_attention)(cache)
        item = self.model.dummy_item(num_tokens)
        with self.platform.measure_peak() as peak:
            self.model.encode([item])
            hidden = self._dummy_pass(attention, num_tokens)
            self.model.logits(hidden[: self.config.max_num_seqs])
        return peak.num_bytes * budget // num_tokens

    def _dummy_pass(self, attention: AttentionBackend, num_tokens: int) -> Tensor:
        """Hidden states of one sequence of the same token, at the beginning of the cache."""
        tokens = torch.arange(num_tokens, device=self.device)
        num_blocks = -(-num_tokens // self.config.block_size)
        tables = torch.arange(num_blocks, device=self.device)[None]
        attention.begin(AttentionBatch(tokens, tables, query_lens=[num_tokens], context_lens=[num_tokens]))
        embeds = self.model.embed(torch.zeros_like(tokens))
        hidden: Tensor = self.model(embeds, tokens.expand(self.model.position_rows, -1), attention)
        return hidden
