"""How much memory a worker's KV cache gets, and what that leaves of the context.

Every error names the setting that asked for too much, and what would fit.
"""

from __future__ import annotations

from collections.abc import Callable

from trifocal.config.engine import EngineConfig
from trifocal.errors import ArgumentError, spelled
from trifocal.log import get_logger
from trifocal.platforms.interface import Platform

logger = get_logger(__name__)
_GIB = 1 << 30


def step_tokens(config: EngineConfig) -> int:
    """Tokens of the largest step that one sequence alone makes."""
    return min(config.scheduling.max_num_batched_tokens, config.scheduling.max_model_len)


def num_blocks(
    config: EngineConfig, platform: Platform, block_bytes: int, scratch_blocks: int, peak_bytes: Callable[[], int]
) -> int:  # fmt: skip
    """Blocks for sequences: those asked for, or what fits beside weights and a full step.

    A block takes `block_bytes`, and `scratch_blocks` are allocated on top. `peak_bytes` measures what a full step takes
    beside weights and KV cache; it is called only where nothing says how large the cache is to be. An engine that
    replaces another one gets as many blocks as that had. Raises `ConfigError`.
    """
    if config.cache.num_blocks_before is not None:
        return config.cache.num_blocks_before
    number = config.cache.num_gpu_blocks_override
    setting = f"{{num_gpu_blocks_override}} {number}"
    if number is None:
        num_bytes, setting = _kv_cache_bytes(config, platform, peak_bytes)
        most = config.scheduling.max_num_seqs * -(-config.scheduling.max_model_len // config.cache.block_size)
        number = min(num_bytes // block_bytes - scratch_blocks, most)
    total, free = (number + scratch_blocks) * block_bytes, platform.memory().free
    if number < 1:
        raise ArgumentError(
            f"{setting} leaves no memory for the KV cache, whose blocks take {block_bytes} bytes each: raise it, lower "
            "{max_num_batched_tokens}, or use {kv_cache_dtype} int8 or a smaller model"
        )
    if total > free:
        raise ArgumentError(
            f"{setting}: a KV cache of {number} blocks takes {total / _GIB:.2f} GiB, but "
            f"{free / _GIB:.2f} GiB are free; at most {free // block_bytes - scratch_blocks} blocks fit"
        )
    logger.info(
        "KV cache: %d blocks of %d tokens in %s, %.2f GiB for %d tokens (%s)",
        *(number, config.cache.block_size, config.cache.kv_cache_dtype, total / _GIB, number * config.cache.block_size),
        spelled(setting),
    )
    return number


def _kv_cache_bytes(config: EngineConfig, platform: Platform, peak_bytes: Callable[[], int]) -> tuple[int, str]:
    """What is asked for, or is left beside a full step; and the setting that decides on it (`ArgumentError`)."""
    if config.cache.kv_cache_memory_bytes is not None:
        return config.cache.kv_cache_memory_bytes, f"{{kv_cache_memory_bytes}} {config.cache.kv_cache_memory_bytes}"
    activation, memory = peak_bytes(), platform.memory()
    num_bytes = platform.kv_cache_bytes(config.cache.gpu_memory_utilization, activation)
    if activation > memory.free:
        tokens = step_tokens(config)
        message = (
            f"{{max_num_batched_tokens}} {config.scheduling.max_num_batched_tokens}: a step of {tokens} tokens takes "
            f"about {activation / _GIB:.2f} GiB, but {memory.free / _GIB:.2f} GiB are free; steps of "
            f"{tokens * memory.free // activation} tokens fit"
        )
        if activation > memory.total or num_bytes == 0:
            raise ArgumentError(message)
        logger.warning("%s", spelled(message))  # a guess; a user who set the size of the KV cache may know better
    logger.info(
        "a full step takes %.2f GiB at its peak, which leaves %.2f GiB for the KV cache. To change that: "
        "--gpu-memory-utilization (now %g), --kv-cache-memory-bytes",
        *(activation / _GIB, num_bytes / _GIB, config.cache.gpu_memory_utilization),
    )
    return num_bytes, platform.kv_cache_setting(config.cache.gpu_memory_utilization)


def max_model_len(config: EngineConfig, num_blocks: int) -> int:
    """The context that so many blocks hold, at most what was asked for. Raises `ConfigError` if that was explicit."""
    room = num_blocks * config.cache.block_size
    if room >= config.scheduling.max_model_len:
        return config.scheduling.max_model_len
    if config.scheduling.is_max_model_len_explicit:
        raise ArgumentError(
            "{max_model_len} {} does not fit: the KV cache has room for {} tokens; lower it, or raise "
            "{gpu_memory_utilization} (TRIFOCAL_CPU_KVCACHE_SPACE on a CPU)",
            config.scheduling.max_model_len,
            room,
        )
    asked = config.scheduling.max_model_len
    logger.warning("max_model_len is %d, which is what the KV cache holds (the model allows %d)", room, asked)
    return room
