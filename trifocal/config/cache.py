"""Memory for keys and values, for embeddings, for decoded media."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from trifocal.config.arguments import above_zero, arg, at_least_one, decided, fits_bytes, part
from trifocal.config.devices import Device
from trifocal.errors import ArgumentError

KV_CACHE_DTYPES = ("auto", "int8")
BLOCK_SIZES = (16, 32, 64, 128)
_GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class CacheArgs:
    """Arguments about memory."""

    block_size: int | None = arg("memory", "tokens in one KV block (default 16; 128 suits NPUs)", None)
    kv_cache_dtype: str = arg(
        "memory",
        "type of cached keys and values; auto: the model's; int8: rounded, with a scale for each token and head",
        "auto",
        choices=list(KV_CACHE_DTYPES),
    )
    gpu_memory_utilization: float = arg("memory", "share of the device's memory to use (of the machine's on CPU)", 0.9)
    kv_cache_memory_bytes: int | None = arg(
        "memory", "bytes of the KV cache, e.g. 4G; memory is then not measured, and CPU_KVCACHE_SPACE not used", None
    )
    num_gpu_blocks_override: int | None = arg("memory", "KV blocks to allocate; memory is then not measured", None)
    swap_space: float = arg(
        "memory", "accepted for compatibility with vLLM, without effect: preempted requests are computed again", 4.0
    )
    encoder_cache_gib: float | None = arg("memory", "GiB for embeddings of pictures and clips (default: 0.25)", None)
    mm_processor_cache_gb: float = arg(
        "memory", "GiB for decoded pictures and clips that may be sent again; 0: none", 0.25
    )
    disable_mm_preprocessor_cache: bool = arg("memory", "the same as --mm-processor-cache-gb 0", False)


@dataclass(frozen=True, kw_only=True)
class CacheConfig(CacheArgs):
    """`CacheArgs`, decided. `num_blocks_before`: KV blocks of the engine that this one takes the place of, if any."""

    block_size: int = decided()
    encoder_cache_gib: float = decided()
    num_blocks_before: int | None = None

    @property
    def encoder_cache_bytes(self) -> int:
        return int(self.encoder_cache_gib * _GIB)

    @property
    def mm_processor_cache_bytes(self) -> int:
        """Room for decoded media; 0: none are kept."""
        return 0 if self.disable_mm_preprocessor_cache else int(self.mm_processor_cache_gb * _GIB)


def cache_config(args: CacheArgs, dtype: str, device: Device) -> CacheConfig:
    """Decide; `dtype` is the model's. Raises `ConfigError`."""
    if not 0 < args.gpu_memory_utilization <= 1:
        raise ArgumentError("{gpu_memory_utilization} must be in (0, 1], got {}", args.gpu_memory_utilization)
    if args.num_gpu_blocks_override is not None:
        at_least_one("num_gpu_blocks_override", args.num_gpu_blocks_override)
    if args.kv_cache_memory_bytes is not None:
        at_least_one("kv_cache_memory_bytes", args.kv_cache_memory_bytes)
    block_size = device.block_size if args.block_size is None else args.block_size
    if block_size not in BLOCK_SIZES:
        raise ArgumentError("{block_size} must be one of {}, got {}", ", ".join(map(str, BLOCK_SIZES)), block_size)
    if args.kv_cache_dtype not in KV_CACHE_DTYPES:
        raise ArgumentError(
            "{kv_cache_dtype} must be {} (there is no cache of 8-bit floats), got {!r}",
            " or ".join(KV_CACHE_DTYPES),
            args.kv_cache_dtype,
        )
    if not 0 <= args.mm_processor_cache_gb < inf:
        raise ArgumentError("{mm_processor_cache_gb} must be 0 or more, got {}", args.mm_processor_cache_gb)
    fits_bytes("mm_processor_cache_gb", args.mm_processor_cache_gb)
    encoder_cache_gib = 0.25 if args.encoder_cache_gib is None else args.encoder_cache_gib
    return part(
        CacheConfig,
        args,
        block_size=block_size,
        kv_cache_dtype=dtype if args.kv_cache_dtype == "auto" else args.kv_cache_dtype,
        encoder_cache_gib=fits_bytes("encoder_cache_gib", above_zero("encoder_cache_gib", encoder_cache_gib)),
    )
