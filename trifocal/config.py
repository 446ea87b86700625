"""Configuration: `EngineArgs` as the user wrote them, `resolve` turns them into a frozen `EngineConfig`.

"auto" and `None` exist in `EngineArgs` only; every field of `EngineConfig` is decided. No torch here: the server
process resolves the configuration before any device code is loaded.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from difflib import get_close_matches
from math import inf
from typing import Any

from trifocal import envs
from trifocal.errors import ConfigError, NotAvailableYetError
from trifocal.model_spec import ModelSpec, Quantization

DTYPES = {"float16": "float16", "half": "float16", "bfloat16": "bfloat16", "float32": "float32", "float": "float32"}
QUANTIZATIONS = ("awq", "int8", "int4")
KV_CACHE_DTYPES = ("auto", "int8")
BLOCK_SIZES = (16, 32, 64, 128)
DEFAULT_MAX_NUM_BATCHED_TOKENS = 2048
DEFAULT_CAPTURE_SIZES = range(1, 33)  # beyond, Python's part of a step is small
DEFAULT_MAX_NUM_BATCHED_TOKENS_CPU = 512  # a step of more would make running answers wait for seconds
_MODALITIES = ("image", "video")
_DEFAULT_MEDIA_LIMIT = 999  # as in vLLM: many enough to mean "as many as fit the context"


def arg(group: str, meaning: str, default: Any = MISSING, **extra: Any) -> Any:
    """A dataclass field that is also a command-line flag: its group and help text travel in the field's metadata."""
    metadata = {"group": group, "help": meaning, **extra}
    if default is MISSING:
        return field(metadata=metadata)
    if isinstance(default, dict | list):
        return field(default_factory=lambda: default.copy(), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class EngineArgs:
    """Arguments of the engine, names and defaults as vLLM's; each is a flag of the server and a keyword of `LLM`.

    Field metadata carries the help text and its group, so that the command line is made from this class alone.
    """

    model: str = arg("model", "folder of a Hugging Face checkpoint")
    tokenizer: str | None = arg("model", "folder of the tokenizer, if not the model's", None)
    revision: str | None = arg("model", "accepted for vLLM's sake; a local folder has one revision", None)
    trust_remote_code: bool = arg("model", "allow a checkpoint's own Python files to run; think first", False)
    dtype: str = arg(
        "model",
        "type of weights and activations; auto: the checkpoint's, and on a CPU bfloat16 for AWQ",
        "auto",
        choices=["auto", *DTYPES],
    )
    quantization: str | None = arg(
        "model",
        "awq for such checkpoints (known without it, too); int8 or int4: round weights on loading",
        None,
    )
    load_format: str = arg(
        "model", "auto and safetensors read the weights, dummy invents random ones", "auto",
        choices=["auto", "safetensors", "dummy"],
    )  # fmt: skip
    allow_pickle: bool = arg(
        "model", "refused: weights are read from safetensors alone, a pickle (.bin, .pt) could run code", False
    )
    seed: int = arg("model", "seed of dummy weights and of requests that bring none", 0)
    generation_config: str = arg(
        "model", "auto: sampling defaults from the model's generation_config.json; vllm: none; or a folder", "auto"
    )
    override_generation_config: dict[str, Any] = arg("model", "JSON of sampling defaults that win over the file", {})
    max_model_len: int | None = arg("scheduling", "longest context in tokens; default: what the model allows", None)
    max_num_seqs: int = arg("scheduling", "most sequences in one step; further requests wait", 256)
    max_num_batched_tokens: int | None = arg(
        "scheduling", "most tokens computed in one step (default: 512 on a CPU, else 2048)", None
    )
    enable_chunked_prefill: bool = arg("scheduling", "spread a long prompt over several steps", True)
    enable_prefix_caching: bool = arg("scheduling", "reuse KV blocks of equal prompt beginnings", True)
    max_logprobs: int = arg("scheduling", "most logprobs a request may ask for; -1: the whole vocabulary", 20)
    block_size: int | None = arg("memory", "tokens in one KV block (default 16; 128 suits NPUs)", None)
    kv_cache_dtype: str = arg(
        "memory",
        "type of cached keys and values; auto: the model's; int8: rounded, with a scale a token and head",
        "auto",
        choices=list(KV_CACHE_DTYPES),
    )
    gpu_memory_utilization: float = arg("memory", "share of the device's memory to use (of the machine's on CPU)", 0.9)
    num_gpu_blocks_override: int | None = arg("memory", "KV blocks to allocate, instead of measuring memory", None)
    swap_space: float = arg("memory", "accepted for vLLM's sake and unused: preemption recomputes", 4.0)
    encoder_cache_gib: float | None = arg("memory", "GiB for embeddings of pictures and clips", None)
    mm_processor_cache_gb: float = arg(
        "memory", "GiB for decoded pictures and clips that may be sent again; 0: none", 0.25
    )
    disable_mm_preprocessor_cache: bool = arg("memory", "the same as --mm-processor-cache-gb 0", False)
    device: str = arg("devices", "auto, cpu, cuda or the name of a plug-in's platform", "auto")
    tensor_parallel_size: int = arg("devices", "devices that share each layer", 1)
    pipeline_parallel_size: int = arg("devices", "groups of devices that share the stack of layers", 1)
    distributed_executor_backend: str | None = arg(
        "devices", "how workers run: uni (this process), mp, ray", None, choices=["uni", "mp", "ray"]
    )
    enforce_eager: bool = arg("devices", "never capture a step to replay it, let Python run every layer", False)
    compilation_config: dict[str, Any] = arg(
        "devices",
        'JSON: {"cudagraph_capture_sizes": [1, 2, 4]} are the tokens of steps to capture, "cudagraph_mode": "NONE" is '
        "--enforce-eager; other keys concern torch.compile, which is not used",
        {},
    )
    limit_mm_per_prompt: dict[str, Any] = arg("media", 'JSON, e.g. {"image": 4, "video": 1}', {})
    mm_processor_kwargs: dict[str, Any] = arg("media", 'JSON for the processor, e.g. {"max_pixels": 401408}', {})
    interleave_mm_strings: bool = arg(
        "media",
        "pictures and clips stay where they are among a message's texts; false: they go first where the chat template "
        "takes strings, as vLLM does unless told",
        True,
    )
    media_io_kwargs: dict[str, Any] = arg("media", 'JSON for reading media, e.g. {"video": {"num_frames": 32}}', {})
    max_image_pixels: int = arg("media", "most pixels of a picture or of a video's frame, by its header", 128_000_000)
    max_request_pixels: int = arg("media", "most pixels of all pictures and chosen frames of a request", 4_000_000_000)
    max_video_frames: int = arg("media", "most frames that may be chosen from one clip", 2048)
    image_decode_timeout: float = arg("media", "seconds that decoding one picture may take", 30.0)
    video_decode_timeout: float = arg("media", "seconds that decoding one clip may take", 120.0)
    decode_memory_gib: float = arg("media", "GiB of memory that a decoder process may take", 2.0)

    @classmethod
    def from_kwargs(cls, **kwargs: Any) -> EngineArgs:
        """Keywords of `LLM(...)`. An unknown one raises `ConfigError` naming the nearest known one."""
        known = [item.name for item in fields(cls)]
        for name in kwargs:
            if name not in known:
                near = get_close_matches(name, known, n=1)
                raise ConfigError(f"unknown argument {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        return cls(**kwargs)


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Everything decided. What only the device can tell (number of KV blocks) is measured by the worker later."""

    spec: ModelSpec
    tokenizer: str
    device: str
    dtype: str
    quantization: Quantization | None
    load_format: str
    seed: int
    trust_remote_code: bool
    num_vocab: int  # ids that can be chosen: the head's, until somebody has read the tokenizer, which may know fewer
    max_model_len: int
    is_max_model_len_explicit: bool
    max_num_seqs: int
    max_num_batched_tokens: int
    enable_chunked_prefill: bool
    enable_prefix_caching: bool
    max_logprobs: int
    block_size: int
    kv_cache_dtype: str
    gpu_memory_utilization: float
    num_blocks_override: int | None
    encoder_cache_bytes: int
    mm_processor_cache_bytes: int
    executor: str
    capture_sizes: tuple[int, ...]  # tokens of steps that may be captured and replayed
    limit_mm_per_prompt: dict[str, int]
    mm_processor_kwargs: dict[str, Any]
    interleave_mm_strings: bool
    media_io_kwargs: dict[str, Any]
    max_image_pixels: int
    max_request_pixels: int
    max_video_frames: int
    image_decode_timeout: float
    video_decode_timeout: float
    decode_memory_bytes: int
    default_sampling: dict[str, Any]


def resolve(args: EngineArgs) -> EngineConfig:
    """Check the arguments against each other and the checkpoint. Raises `ConfigError` naming flag and remedy."""
    from trifocal.models.registry import check_architecture
    from trifocal.platforms import detect_device

    envs.USE_V1.get()
    _refuse_unbuilt(args)
    spec = ModelSpec.from_checkpoint(args.model)
    check_architecture(spec.architecture)
    quantization = _quantization(args, spec)
    max_model_len = _max_model_len(args, spec)
    device = detect_device(args.device)
    _positive("--max-num-seqs", args.max_num_seqs)
    if not 0 < args.gpu_memory_utilization <= 1:
        raise ConfigError(f"--gpu-memory-utilization must be in (0, 1], got {args.gpu_memory_utilization}")
    if args.num_gpu_blocks_override is not None:
        _positive("--num-gpu-blocks-override", args.num_gpu_blocks_override)
    if args.max_logprobs < -1:
        raise ConfigError(f"--max-logprobs must be at least -1 (all of the vocabulary), got {args.max_logprobs}")
    block_size = args.block_size or BLOCK_SIZES[0]
    if block_size not in BLOCK_SIZES:
        raise ConfigError(f"--block-size must be one of {', '.join(map(str, BLOCK_SIZES))}, got {block_size}")
    dtype = _dtype(args, spec, quantization, device)
    return EngineConfig(
        spec=spec,
        tokenizer=args.tokenizer or spec.path,
        device=device,
        dtype=dtype,
        quantization=quantization,
        load_format=args.load_format,
        seed=args.seed,
        trust_remote_code=args.trust_remote_code,
        num_vocab=spec.text.vocab_size,
        max_model_len=max_model_len,
        is_max_model_len_explicit=args.max_model_len is not None,
        max_num_seqs=args.max_num_seqs,
        max_num_batched_tokens=_max_num_batched_tokens(args, max_model_len, device),
        enable_chunked_prefill=args.enable_chunked_prefill,
        enable_prefix_caching=args.enable_prefix_caching,
        max_logprobs=args.max_logprobs,
        block_size=block_size,
        kv_cache_dtype=_kv_cache_dtype(args, dtype),
        gpu_memory_utilization=args.gpu_memory_utilization,
        num_blocks_override=args.num_gpu_blocks_override,
        encoder_cache_bytes=_encoder_cache_bytes(args),
        mm_processor_cache_bytes=_mm_processor_cache_bytes(args),
        executor=args.distributed_executor_backend or "uni",
        capture_sizes=_capture_sizes(args),
        limit_mm_per_prompt=_media_limits(args.limit_mm_per_prompt),
        mm_processor_kwargs=dict(args.mm_processor_kwargs),
        interleave_mm_strings=args.interleave_mm_strings,
        media_io_kwargs=dict(args.media_io_kwargs),
        max_image_pixels=_positive("--max-image-pixels", args.max_image_pixels),
        max_request_pixels=_positive("--max-request-pixels", args.max_request_pixels),
        max_video_frames=_positive("--max-video-frames", args.max_video_frames),
        image_decode_timeout=_above_zero("--image-decode-timeout", args.image_decode_timeout),
        video_decode_timeout=_above_zero("--video-decode-timeout", args.video_decode_timeout),
        decode_memory_bytes=int(_above_zero("--decode-memory-gib", args.decode_memory_gib) * (1 << 30)),
        default_sampling=_default_sampling(args, spec, max_model_len),
    )


def _refuse_unbuilt(args: EngineArgs) -> None:
    devices = args.tensor_parallel_size * args.pipeline_parallel_size
    _positive("--tensor-parallel-size", args.tensor_parallel_size)
    _positive("--pipeline-parallel-size", args.pipeline_parallel_size)
    if devices > 1:
        raise NotAvailableYetError(f"--tensor-parallel-size x --pipeline-parallel-size = {devices} devices (1 works)")
    if args.distributed_executor_backend in ("mp", "ray"):
        raise NotAvailableYetError(f"--distributed-executor-backend {args.distributed_executor_backend} (uni works)")
    if args.allow_pickle:
        raise NotAvailableYetError("--allow-pickle (only safetensors are read; convert the checkpoint once instead)")
    if args.load_format not in ("auto", "safetensors", "dummy"):
        raise ConfigError(f"--load-format must be auto, safetensors or dummy, got {args.load_format!r}")


def _quantization(args: EngineArgs, spec: ModelSpec) -> Quantization | None:
    own = Quantization.from_config(spec.quantization) if spec.quantization else None
    if not args.quantization:
        return own
    if args.quantization not in QUANTIZATIONS:
        raise ConfigError(f"--quantization must be {', '.join(QUANTIZATIONS)}, got {args.quantization!r}")
    if args.quantization == "awq" and own is None:
        raise ConfigError(
            "--quantization awq: the checkpoint is not quantized, its config.json has no quantization_config"
        )
    if args.quantization != "awq" and own is not None:
        raise ConfigError(f"--quantization {args.quantization}: the checkpoint is quantized by {own.method} already")
    return own or Quantization(args.quantization)


def _dtype(args: EngineArgs, spec: ModelSpec, quantization: Quantization | None, device: str) -> str:
    if args.dtype == "auto":
        # AWQ's files say float16 because its GPU kernels want it; there is no fast float16 on most CPUs.
        is_awq = quantization is not None and quantization.method == "awq"
        return "bfloat16" if is_awq and device == "cpu" and spec.dtype == "float16" else spec.dtype
    if args.dtype not in DTYPES:
        raise ConfigError(f"--dtype must be auto, {', '.join(DTYPES)}, got {args.dtype!r}")
    return DTYPES[args.dtype]


def _kv_cache_dtype(args: EngineArgs, dtype: str) -> str:
    if args.kv_cache_dtype not in KV_CACHE_DTYPES:
        raise ConfigError(
            f"--kv-cache-dtype must be {' or '.join(KV_CACHE_DTYPES)} (there is no cache of 8-bit floats), "
            f"got {args.kv_cache_dtype!r}"
        )
    return dtype if args.kv_cache_dtype == "auto" else args.kv_cache_dtype


def _positive(flag: str, value: int) -> int:
    if value < 1:
        raise ConfigError(f"{flag} must be at least 1, got {value}")
    return value


def _above_zero(flag: str, value: float) -> float:
    if not 0 < value < float("inf"):
        raise ConfigError(f"{flag} must be above 0, got {value}")
    return value


def _max_model_len(args: EngineArgs, spec: ModelSpec) -> int:
    if args.max_model_len is None:
        return spec.max_model_len
    _positive("--max-model-len", args.max_model_len)
    if args.max_model_len > spec.max_model_len and not envs.ALLOW_LONG_MAX_MODEL_LEN.get():
        raise ConfigError(
            f"--max-model-len {args.max_model_len} is above the model's own limit of {spec.max_model_len} "
            "(max_position_embeddings in config.json); set VLLM_ALLOW_LONG_MAX_MODEL_LEN=1 to go beyond it"
        )
    return args.max_model_len


def _max_num_batched_tokens(args: EngineArgs, max_model_len: int, device: str) -> int:
    value = args.max_num_batched_tokens
    if value is None:
        value = DEFAULT_MAX_NUM_BATCHED_TOKENS_CPU if device == "cpu" else DEFAULT_MAX_NUM_BATCHED_TOKENS
        return value if args.enable_chunked_prefill else max(value, max_model_len)
    _positive("--max-num-batched-tokens", value)
    if not args.enable_chunked_prefill and value < max_model_len:
        raise ConfigError(
            f"--max-num-batched-tokens {value} is below --max-model-len {max_model_len}: raise it, or leave "
            "chunked prefill on (--enable-chunked-prefill)"
        )
    return value


def _capture_sizes(args: EngineArgs) -> tuple[int, ...]:
    wanted = args.compilation_config
    sizes = wanted.get("cudagraph_capture_sizes")
    if sizes is None:
        sizes = list(DEFAULT_CAPTURE_SIZES)
    if not isinstance(sizes, list) or not all(type(size) is int and size > 0 for size in sizes):
        raise ConfigError(
            f"--compilation-config: cudagraph_capture_sizes must be a list of integers above 0, got {sizes!r}"
        )
    return () if args.enforce_eager or wanted.get("cudagraph_mode") in ("NONE", 0) else tuple(sizes)


def _encoder_cache_bytes(args: EngineArgs) -> int:
    gib = 0.25 if args.encoder_cache_gib is None else args.encoder_cache_gib
    if gib <= 0:
        raise ConfigError(f"--encoder-cache-gib must be above 0, got {gib}")
    return int(gib * (1 << 30))


def _mm_processor_cache_bytes(args: EngineArgs) -> int:
    if not 0 <= args.mm_processor_cache_gb < inf:
        raise ConfigError(f"--mm-processor-cache-gb must be 0 or more, got {args.mm_processor_cache_gb}")
    return 0 if args.disable_mm_preprocessor_cache else int(args.mm_processor_cache_gb * (1 << 30))


def _media_limits(limits: dict[str, Any]) -> dict[str, int]:
    for name, limit in limits.items():
        if name not in _MODALITIES:
            raise ConfigError(f"--limit-mm-per-prompt: unknown modality {name!r}; known: image, video")
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 0:
            raise ConfigError(f"--limit-mm-per-prompt: {name} must be an integer of at least 0, got {limit!r}")
    return {name: limits.get(name, _DEFAULT_MEDIA_LIMIT) for name in _MODALITIES}


_SAMPLING_DEFAULTS = ("repetition_penalty", "temperature", "top_k", "top_p", "min_p", "max_new_tokens")


def _default_sampling(args: EngineArgs, spec: ModelSpec, max_model_len: int) -> dict[str, Any]:
    """Sampling defaults by vLLM's rule: these fields of generation_config.json, renamed, then the overrides."""
    from pathlib import Path

    from trifocal.model_spec import read_json

    if args.generation_config == "auto":
        source = spec.generation_config
    elif args.generation_config in ("vllm", "trifocal"):
        source = {}
    else:
        source = read_json(Path(args.generation_config) / "generation_config.json", required=True)
    merged = {**source, **args.override_generation_config}
    found = {name: merged[name] for name in _SAMPLING_DEFAULTS if merged.get(name) is not None}
    if "max_new_tokens" in found:
        most = found.pop("max_new_tokens")
        # A request that asks for more than the context is refused; who asks for nothing has made no mistake.
        found["max_tokens"] = min(most, max_model_len) if isinstance(most, int) else most
    return found
