"""Configuration: `EngineArgs` as the user wrote them, `resolve` turns them into a frozen `EngineConfig`.

"auto" and `None` exist in `EngineArgs` only; every field of `EngineConfig` is decided. No torch here: the server
process resolves the configuration before any device code is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import MISSING, Field, dataclass, field, fields
from difflib import get_close_matches
from math import inf
from pathlib import Path
from typing import Any, get_args

from trifocal.config import envs
from trifocal.config.arguments import fit_fields
from trifocal.config.compilation import capture_sizes
from trifocal.config.devices import Device, detect_device, device_named
from trifocal.config.vllm_options import GENERATION_KEYS_WITHOUT_EFFECT, OPTIONS, PYTHON_OPTIONS, UNUSED_FIELDS
from trifocal.errors import ConfigError, NotAvailableYetError, RequestError
from trifocal.log import get_logger
from trifocal.model_spec import ModelSpec, Quantization
from trifocal.sampling_params import SamplingParams
from trifocal.types import Modality

logger = get_logger(__name__)
DTYPES = {"float16": "float16", "half": "float16", "bfloat16": "bfloat16", "float32": "float32", "float": "float32"}
QUANTIZATIONS = ("awq", "int8", "int4")
KV_CACHE_DTYPES = ("auto", "int8")
BLOCK_SIZES = (16, 32, 64, 128)
_MOST_GIB = 1 << 30  # an exbibyte: far beyond any machine, and its bytes are still a number for messages
_MODALITIES: tuple[Modality, ...] = get_args(Modality)
_PROFILING_KEYS = ("width", "height", "num_frames")
_DEFAULT_MEDIA_LIMIT = 999  # as in vLLM: many enough to mean "as many as fit the context"


def arg(group: str, meaning: str, default: Any = MISSING, **extra: Any) -> Any:
    """A dataclass field that is also a command-line flag: its group and help text travel in the field's metadata.

    So do `choices`, `also` (other names of the flag), `means_none` (values that stand for None) and `number_is` (the
    key of a JSON object that a number in its place gives).
    """
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

    are_keywords = False  # whether errors call them max_num_seqs, not --max-num-seqs (no field: not annotated)

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
    max_model_len: int | None = arg(
        "scheduling",
        "longest context in tokens; default, auto or -1: what the model allows and the KV cache holds",
        None,
        means_none=("auto", -1),
    )
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
    kv_cache_memory_bytes: int | None = arg(
        "memory", "bytes of KV cache, e.g. 4G, instead of measuring memory (and of CPU_KVCACHE_SPACE)", None
    )
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
        'JSON: {"cudagraph_capture_sizes": [1, 2, 4]} are the tokens of steps to capture, "max_cudagraph_capture_size" '
        'is the most of them, "cudagraph_mode": "NONE" is --enforce-eager; other keys (and a number) concern '
        "torch.compile, which is not used",
        {},
        number_is="mode",
    )
    cudagraph_capture_sizes: list[int] | None = arg(
        "devices", "the same as that key of --compilation-config", None, also=["cuda_graph_sizes"]
    )
    max_cudagraph_capture_size: int | None = arg("devices", "the same as that key of --compilation-config", None)
    optimization_level: int | None = arg(
        "devices", "0 is --enforce-eager, 1 to 3 have no effect: there is no torch.compile; -O3 is short for it", None
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

    def __post_init__(self) -> None:
        fit_fields(self)

    @classmethod
    def from_kwargs(cls, **kwargs: Any) -> EngineArgs:
        """Keywords of `LLM(...)`, those of vLLM's that have no effect here among them; None always means the default.

        Raises `ConfigError` for an unknown one, naming the nearest known one, and for a value that cannot be used.
        """
        known = {item.name: item for item in fields(cls)}
        options = {option.name: option for option in (*OPTIONS, *PYTHON_OPTIONS)}
        given: dict[str, Any] = {}
        notes = [
            f"{name} has no effect: {why}"
            for name, why in UNUSED_FIELDS.items()
            if kwargs.get(name) not in (None, known[name].default)
        ]
        for name, value in kwargs.items():
            if name in known:
                if value is not None and value not in known[name].metadata.get("means_none", ()):
                    given[name] = _with_shorthand(known[name], value)
            elif name in options:
                notes.append(options[name].note(value, f"{name}={value!r:.200}", name) or "")
            else:
                near = get_close_matches(name, [*known, *options], n=1)
                raise ConfigError(f"unknown argument {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        if "model" not in given:
            raise ConfigError("which model? give the folder of a checkpoint: LLM(model=...)")
        for note in filter(None, notes):
            logger.warning("%s", note)
        args = cls(**given)
        object.__setattr__(args, "are_keywords", True)
        return args


def _with_shorthand(item: Field[Any], value: Any) -> Any:
    """vLLM takes a number in place of some JSON objects."""
    key = item.metadata.get("number_is")
    return {key: value} if key and type(value) is int else value


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
    num_blocks_before: int | None  # KV blocks of the engine that this one takes the place of
    kv_cache_memory_bytes: int | None
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
    """Check the arguments against each other and the checkpoint.

    Raises `ConfigError` naming the flag, or the keyword of `LLM(...)`, and the remedy.
    """
    with errors_in_keywords() if args.are_keywords else nullcontext():
        return _resolved(args)


@contextmanager
def errors_in_keywords() -> Iterator[None]:
    """A `ConfigError` raised inside calls options what a caller of `LLM(...)` calls them, not by their flags."""
    try:
        yield
    except ConfigError as error:
        error.args = (_with_keywords(str(error)),)
        raise


def _with_keywords(message: str) -> str:
    """`message` with the names of flags written as keywords."""
    names = {
        "--" + name.replace("_", "-"): name for name in (*(item.name for item in fields(EngineArgs)), "chat_template")
    }
    return re.sub(r"--[a-z-]+", lambda found: names.get(found[0], found[0]), message)


def _resolved(args: EngineArgs) -> EngineConfig:
    from trifocal.families import check_architecture, modalities_of

    envs.check()
    for note in envs.notes():
        logger.warning("%s", note)
    _refuse_unbuilt(args)
    spec = ModelSpec.from_checkpoint(args.model)
    check_architecture(spec.architecture)
    quantization = _quantization(args, spec)
    max_model_len = _max_model_len(args, spec)
    name = detect_device(args.device)
    device = device_named(name)
    _positive("--max-num-seqs", args.max_num_seqs)
    if not 0 < args.gpu_memory_utilization <= 1:
        raise ConfigError(f"--gpu-memory-utilization must be in (0, 1], got {args.gpu_memory_utilization}")
    if args.num_gpu_blocks_override is not None:
        _positive("--num-gpu-blocks-override", args.num_gpu_blocks_override)
    if args.kv_cache_memory_bytes is not None:
        _positive("--kv-cache-memory-bytes", args.kv_cache_memory_bytes)
    if args.max_logprobs < -1:
        raise ConfigError(f"--max-logprobs must be at least -1 (all of the vocabulary), got {args.max_logprobs}")
    block_size = device.block_size if args.block_size is None else args.block_size
    if block_size not in BLOCK_SIZES:
        raise ConfigError(f"--block-size must be one of {', '.join(map(str, BLOCK_SIZES))}, got {block_size}")
    dtype = _dtype(args, spec, quantization, device)
    return EngineConfig(
        spec=spec,
        tokenizer=_folder("--tokenizer", args.tokenizer) if args.tokenizer else spec.path,
        device=name,
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
        num_blocks_before=None,
        kv_cache_memory_bytes=args.kv_cache_memory_bytes,
        encoder_cache_bytes=_encoder_cache_bytes(args),
        mm_processor_cache_bytes=_mm_processor_cache_bytes(args),
        executor=args.distributed_executor_backend or "uni",
        capture_sizes=_capture_sizes(args),
        limit_mm_per_prompt=_media_limits(args.limit_mm_per_prompt, modalities_of(spec.architecture)),
        mm_processor_kwargs=dict(args.mm_processor_kwargs),
        interleave_mm_strings=args.interleave_mm_strings,
        media_io_kwargs=dict(args.media_io_kwargs),
        max_image_pixels=_positive("--max-image-pixels", args.max_image_pixels),
        max_request_pixels=_positive("--max-request-pixels", args.max_request_pixels),
        max_video_frames=_positive("--max-video-frames", args.max_video_frames),
        image_decode_timeout=_above_zero("--image-decode-timeout", args.image_decode_timeout),
        video_decode_timeout=_above_zero("--video-decode-timeout", args.video_decode_timeout),
        decode_memory_bytes=_bytes_of(
            "--decode-memory-gib", _above_zero("--decode-memory-gib", args.decode_memory_gib)
        ),
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
    if args.distributed_executor_backend not in (None, "uni"):
        raise ConfigError(f"--distributed-executor-backend must be uni, got {args.distributed_executor_backend!r}")
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


def _dtype(args: EngineArgs, spec: ModelSpec, quantization: Quantization | None, device: Device) -> str:
    if args.dtype == "auto":
        is_awq = quantization is not None and quantization.method == "awq"
        return device.awq_dtype if is_awq and device.awq_dtype and spec.dtype == "float16" else spec.dtype
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


def _bytes_of(flag: str, gib: float) -> int:
    if gib > _MOST_GIB:
        raise ConfigError(f"{flag} must be at most {_MOST_GIB}, got {gib}")
    return int(gib * (1 << 30))


def _folder(flag: str, path: str) -> str:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"{flag} {path!r} is not a folder")
    return str(folder)


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


def _max_num_batched_tokens(args: EngineArgs, max_model_len: int, device: Device) -> int:
    value = args.max_num_batched_tokens
    if value is None:
        value = device.max_num_batched_tokens
        return value if args.enable_chunked_prefill else max(value, max_model_len)
    _positive("--max-num-batched-tokens", value)
    if not args.enable_chunked_prefill and value < max_model_len:
        raise ConfigError(
            f"--max-num-batched-tokens {value} is below --max-model-len {max_model_len}: raise it, or leave "
            "chunked prefill on (--enable-chunked-prefill)"
        )
    return value


def _capture_sizes(args: EngineArgs) -> tuple[int, ...]:
    config = dict(args.compilation_config)
    for name in ("cudagraph_capture_sizes", "max_cudagraph_capture_size"):
        value = getattr(args, name)
        if value is not None and config.setdefault(name, value) != value:
            flag = "--" + name.replace("_", "-")
            raise ConfigError(f"{flag} {value} and {name} in --compilation-config, {config[name]}, are not the same")
    if args.optimization_level is not None and args.optimization_level not in range(4):
        raise ConfigError(f"--optimization-level must be 0, 1, 2 or 3, got {args.optimization_level}")
    sizes = capture_sizes(config)
    return () if args.enforce_eager or args.optimization_level == 0 else sizes


def _encoder_cache_bytes(args: EngineArgs) -> int:
    gib = 0.25 if args.encoder_cache_gib is None else args.encoder_cache_gib
    return _bytes_of("--encoder-cache-gib", _above_zero("--encoder-cache-gib", gib))


def _mm_processor_cache_bytes(args: EngineArgs) -> int:
    gib = args.mm_processor_cache_gb
    if not 0 <= gib < inf:
        raise ConfigError(f"--mm-processor-cache-gb must be 0 or more, got {gib}")
    return 0 if args.disable_mm_preprocessor_cache else _bytes_of("--mm-processor-cache-gb", gib)


def _media_limits(limits: dict[str, Any], taken: tuple[str, ...]) -> dict[str, int]:
    """Items of each kind that a prompt may hold; `taken` are the kinds that the model takes."""
    numbers: dict[str, int] = {name: _DEFAULT_MEDIA_LIMIT if name in taken else 0 for name in _MODALITIES}
    for name, limit in limits.items():
        number = _count(name, limit) if isinstance(limit, dict) else limit
        if name == "audio" and number == 0:  # asks for what is so anyway
            continue
        if name not in _MODALITIES:
            raise ConfigError(f"--limit-mm-per-prompt: unknown modality {name!r}; known: {', '.join(_MODALITIES)}")
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise ConfigError(f"--limit-mm-per-prompt: {name} must be an integer of at least 0, got {number!r}")
        if number and name not in taken:
            raise ConfigError(f"--limit-mm-per-prompt: {name} {number}: this model takes text only")
        numbers[name] = number
    return numbers


def _count(name: str, limit: dict[str, Any]) -> Any:
    """The number of items in vLLM's longer form, whose other keys say how large the items of its profiling are."""
    for key in limit:
        if key not in ("count", *_PROFILING_KEYS):
            known = ", ".join(("count", *_PROFILING_KEYS))
            raise ConfigError(f"--limit-mm-per-prompt: {name}: unknown key {key!r}; known: {known}")
    unused = [f"{name}.{key}" for key in limit if key != "count"]
    if unused:
        logger.warning("limits of media: no effect, as memory is measured otherwise: %s", ", ".join(unused))
    return limit.get("count", _DEFAULT_MEDIA_LIMIT)


_SAMPLING_DEFAULTS = ("repetition_penalty", "temperature", "top_k", "top_p", "min_p", "max_new_tokens")


def _check_generation_keys(overrides: dict[str, Any]) -> None:
    for key in overrides:
        if key not in _SAMPLING_DEFAULTS and key not in GENERATION_KEYS_WITHOUT_EFFECT:
            near = get_close_matches(key, _SAMPLING_DEFAULTS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(_SAMPLING_DEFAULTS)}"
            raise ConfigError(f"--override-generation-config: unknown key {key!r}; {hint}")
    for key, why in GENERATION_KEYS_WITHOUT_EFFECT.items():
        if key in overrides:
            logger.warning("%s of the generation config has no effect: %s", key, why)


def _default_sampling(args: EngineArgs, spec: ModelSpec, max_model_len: int) -> dict[str, Any]:
    """Sampling defaults by vLLM's rule: these fields of generation_config.json, renamed, then the overrides."""
    from trifocal.model_spec import read_json

    if args.generation_config == "auto":
        source = spec.generation_config
    elif args.generation_config in ("vllm", "trifocal"):
        source = {}
    else:
        folder = Path(_folder("--generation-config", args.generation_config))
        source = read_json(folder / "generation_config.json", required=True)
    _check_generation_keys(args.override_generation_config)
    merged = {**source, **args.override_generation_config}
    found = {name: merged[name] for name in _SAMPLING_DEFAULTS if merged.get(name) is not None}
    if "max_new_tokens" in found:
        found["max_tokens"] = found.pop("max_new_tokens")
    try:
        SamplingParams(**found)
    except RequestError as error:
        blamed = "max_new_tokens" if error.param == "max_tokens" else str(error.param)
        is_given = blamed in args.override_generation_config
        place = "--override-generation-config" if is_given else "generation_config.json"
        raise ConfigError(f"{place}: {error.message.replace('max_tokens', 'max_new_tokens')}") from None
    if "max_tokens" in found:  # a request that asks for more than the context is refused; a default is fitted to it
        found["max_tokens"] = min(found["max_tokens"], max_model_len)
    return found
