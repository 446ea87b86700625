"""One worker: one device with its share of the model and of the KV cache."""

from __future__ import annotations

from time import perf_counter

import torch
from torch import Tensor

from trifocal.attention.base import AttentionBackend, AttentionBatch, KVCache
from trifocal.attention.registry import ATTENTION
from trifocal.config.engine import EngineConfig
from trifocal.errors import ArgumentError, spelled
from trifocal.log import get_logger
from trifocal.models.loader import load_model
from trifocal.platforms import get_platform
from trifocal.types import Capacity, StepPlan, StepResult
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
        self.platform = get_platform(config.parallel.device, config.parallel.platform)
        self.device = self.platform.device()
        self.dtype: torch.dtype = getattr(torch, config.model.dtype)
        self.cache_dtype: torch.dtype = getattr(torch, config.cache.kv_cache_dtype)
        started = perf_counter()
        self.model = load_model(
            config.model.spec,
            dtype=self.dtype,
            device=self.device,
            load_format=config.model.load_format,
            packed_cache=config.model.packed_cache,
            seed=config.model.seed,
            progress=True,
            quantization=config.model.quantization,
            kernels=self.platform.kernels(),
        )
        how = f", linear layers in {config.model.quantization.method}" if config.model.quantization else ""
        logger.info(
            "weights loaded in %.1f s (%s%s, %s)", perf_counter() - started, config.model.dtype, how, self.device
        )
        num_blocks = self._num_blocks()
        self.capacity = Capacity(
            num_blocks=num_blocks,
            max_model_len=self._max_model_len(num_blocks),
            bytes_per_embed=config.model.spec.text.hidden_size * self.dtype.itemsize,
        )
        cache = self._cache(num_blocks)
        attention = ATTENTION.get(self.platform.default_attention)(cache, config.parallel.capture_sizes)
        started = perf_counter()
        attention.capture(lambda num_tokens: self._dummy_pass(attention, num_tokens))
        logger.info("steps captured in %.1f s (--enforce-eager: none are)", perf_counter() - started)
        self._attention = attention
        self.reset()

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> StepResult:
        """Run one step."""
        return self.runner.execute(plan)

    def reset(self) -> None:
        """Forget every sequence and all embeddings; weights and the memory of the KV cache stay."""
        sampler = Sampler(self.config.model.num_vocab, self.platform.kernels())
        self.runner = ModelRunner(self.model, self._attention, sampler, self.platform)

    # ------------------------------------------------------------------------------------------ memory

    def _cache(self, num_blocks: int) -> KVCache:
        text = self.config.model.spec.text
        shape = (text.num_layers, num_blocks, text.num_kv_heads, self.config.cache.block_size, text.head_dim)
        return KVCache.allocate(shape, dtype=self.cache_dtype, device=self.device)

    def _num_blocks(self) -> int:
        """Blocks to allocate: those asked for, or what fits. Raises `ConfigError` naming a setting that is too much."""
        cache, scheduling, text = self.config.cache, self.config.scheduling, self.config.model.spec.text
        if cache.num_blocks_before is not None:
            return cache.num_blocks_before
        per_head = KVCache.bytes_per_head(text.head_dim, self.cache_dtype)
        per_block = text.num_layers * text.num_kv_heads * per_head * cache.block_size
        num_blocks = cache.num_gpu_blocks_override
        setting = f"{{num_gpu_blocks_override}} {num_blocks}"
        if num_blocks is None:
            num_bytes, setting = self._kv_cache_bytes()
            most = scheduling.max_num_seqs * -(-scheduling.max_model_len // cache.block_size)
            num_blocks = min(num_bytes // per_block, most)
        num_tokens = num_blocks * cache.block_size
        total, free = num_blocks * per_block, self.platform.memory().free
        if num_blocks < 1:
            raise ArgumentError(
                f"no memory is left for the KV cache by {setting}, a block takes {per_block} bytes: raise it, lower "
                "{max_num_batched_tokens}, or take {kv_cache_dtype} int8 or a smaller model"
            )
        if total > free:
            raise ArgumentError(
                f"{setting}: a KV cache of {num_blocks} blocks takes {total / _GIB:.2f} GiB, but "
                f"{free / _GIB:.2f} GiB are free; at most {free // per_block} blocks fit"
            )
        logger.info(
            "KV cache: %d blocks of %d tokens in %s, %.2f GiB for %d tokens (%s)",
            *(num_blocks, cache.block_size, cache.kv_cache_dtype, total / _GIB, num_tokens, spelled(setting)),
        )
        return num_blocks

    def _kv_cache_bytes(self) -> tuple[int, str]:
        """What is asked for, or is left beside a full step; and the setting that decides on it (`ArgumentError`)."""
        config, platform = self.config, self.platform
        if config.cache.kv_cache_memory_bytes is not None:
            num_bytes = config.cache.kv_cache_memory_bytes
            return num_bytes, f"{{kv_cache_memory_bytes}} {num_bytes}"
        activation, memory = self._profile_peak(), platform.memory()
        num_bytes = platform.kv_cache_bytes(config.cache.gpu_memory_utilization, activation)
        if activation > memory.free:
            message = (
                f"{{max_num_batched_tokens}} {config.scheduling.max_num_batched_tokens}: a step of {self._step_tokens} "
                f"tokens takes about {activation / _GIB:.2f} GiB, but {memory.free / _GIB:.2f} GiB are free; steps of "
                f"{self._step_tokens * memory.free // activation} tokens fit"
            )
            if activation > memory.total or num_bytes == 0:
                raise ArgumentError(message)
            logger.warning("%s", spelled(message))  # a guess, and whoever set the size of the KV cache may know better
        logger.info(
            "measured: a step's peak %.2f GiB, left for the KV cache %.2f GiB. More or less: --gpu-memory-utilization "
            "(now %g), --kv-cache-memory-bytes",
            *(activation / _GIB, num_bytes / _GIB, config.cache.gpu_memory_utilization),
        )
        return num_bytes, platform.kv_cache_setting(config.cache.gpu_memory_utilization)

    def _max_model_len(self, num_blocks: int) -> int:
        room, scheduling = num_blocks * self.config.cache.block_size, self.config.scheduling
        if room >= scheduling.max_model_len:
            return scheduling.max_model_len
        if scheduling.is_max_model_len_explicit:
            raise ArgumentError(
                "{max_model_len} {} does not fit: the KV cache has room for {} tokens; lower it, or raise "
                "{gpu_memory_utilization} (TRIFOCAL_CPU_KVCACHE_SPACE on a CPU)",
                scheduling.max_model_len,
                room,
            )
        logger.warning(
            "max_model_len is %d, what the KV cache holds (the model allows %d)", room, scheduling.max_model_len
        )
        return room

    @property
    def _step_tokens(self) -> int:
        """Tokens of the largest step that one sequence alone makes."""
        return min(self.config.scheduling.max_num_batched_tokens, self.config.scheduling.max_model_len)

    def _profile_peak(self) -> int:
        """Bytes that a full step may take beside weights and KV cache, measured on dummy input.

        Where a full step would take long (CPU) a smaller one is measured and scaled: memory grows with its tokens.
        """
        budget = self._step_tokens
        num_tokens = min(budget, self.platform.max_profile_tokens or budget)
        cache = self._cache(-(-num_tokens // self.config.cache.block_size))
        attention = ATTENTION.get(self.platform.default_attention)(cache)
        item = self.model.dummy_item(num_tokens)
        with self.platform.measure_peak() as peak:
            self.model.encode([item])
            hidden = self._dummy_pass(attention, num_tokens)
            self.model.logits(hidden[: self.config.scheduling.max_num_seqs])
        return peak.num_bytes * budget // num_tokens

    def _dummy_pass(self, attention: AttentionBackend, num_tokens: int) -> Tensor:
        """Hidden states of one sequence of the same token, at the beginning of the cache."""
        tokens = torch.arange(num_tokens, device=self.device)
        num_blocks = -(-num_tokens // self.config.cache.block_size)
        tables = torch.arange(num_blocks, device=self.device)[None]
        attention.begin(AttentionBatch(tokens, tables, query_lens=[num_tokens], context_lens=[num_tokens]))
        embeds = self.model.embed(torch.zeros_like(tokens))
        hidden: Tensor = self.model(embeds, tokens.expand(self.model.position_rows, -1), attention)
        return hidden
