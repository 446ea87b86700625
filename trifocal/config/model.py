"""Which model, in which types, with which sampling defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trifocal.config import envs
from trifocal.config.arguments import arg, folder, from_env, part
from trifocal.config.devices import Device
from trifocal.config.generation import default_sampling
from trifocal.errors import ArgumentError, NotAvailableYetError
from trifocal.model_spec import ModelSpec, Quantization

DTYPES = {"float16": "float16", "half": "float16", "bfloat16": "bfloat16", "float32": "float32", "float": "float32"}
QUANTIZATIONS = ("awq", "int8", "int4")
_LOAD_FORMATS = ("auto", "safetensors", "dummy")


@dataclass(frozen=True, kw_only=True)
class ModelArgs:
    """Arguments about the model."""

    model: str = arg("model", "folder of a Hugging Face checkpoint")
    tokenizer: str | None = arg("model", "folder of the tokenizer (default: the model's)", None)
    revision: str | None = arg(
        "model", "accepted for compatibility with vLLM, without effect: a local folder has one revision", None
    )
    trust_remote_code: bool = arg(
        "model", "run Python files of the checkpoint, with all your rights; read them first", False
    )
    dtype: str = arg(
        "model",
        "type of weights and activations; auto: the checkpoint's, and on a CPU bfloat16 for AWQ",
        "auto",
        choices=["auto", *DTYPES],
    )
    quantization: str | None = arg(
        "model",
        "awq: for AWQ checkpoints, which are recognised without it too; int8 or int4: round the weights while loading",
        None,
    )
    load_format: str = arg(
        "model", "auto or safetensors: read the weights; dummy: make up random ones", "auto",
        choices=list(_LOAD_FORMATS),
    )  # fmt: skip
    allow_pickle: bool = arg("model", "refused: only safetensors are read, as a pickle (.bin, .pt) can run code", False)
    seed: int = arg("model", "seed of dummy weights, and of requests that give none", 0)
    generation_config: str = arg(
        "model",
        "where sampling defaults come from; auto: the model's generation_config.json; vllm: nowhere; or a folder",
        "auto",
    )
    override_generation_config: dict[str, Any] = arg("model", "sampling defaults that win over that file, JSON", {})


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The checkpoint and what was decided about it. `dtype` and `quantization` are those of the weights in memory.

    `num_vocab` counts the ids that can be chosen: the head's, until somebody has read the tokenizer, which may know
    fewer. `default_sampling` are keywords of `SamplingParams`.
    """

    spec: ModelSpec
    tokenizer: str
    trust_remote_code: bool
    dtype: str
    quantization: Quantization | None
    load_format: str
    seed: int
    num_vocab: int
    default_sampling: dict[str, Any]
    packed_cache: bool = from_env(envs.PACKED_CACHE)


def read_spec(args: ModelArgs) -> ModelSpec:
    """What the checkpoint says of itself. Raises `ConfigError`, first for what no checkpoint can be asked."""
    if args.allow_pickle:
        raise NotAvailableYetError("{allow_pickle} (only safetensors are read; convert the checkpoint to them once)")
    if args.load_format not in _LOAD_FORMATS:
        raise ArgumentError("{load_format} must be auto, safetensors or dummy, got {!r}", args.load_format)
    return ModelSpec.from_checkpoint(args.model)


def model_config(args: ModelArgs, spec: ModelSpec, device: Device, max_model_len: int) -> ModelConfig:
    """Decide. Raises `ConfigError`."""
    quantization = _quantization(args, spec)
    return part(
        ModelConfig,
        args,
        spec=spec,
        tokenizer=folder("tokenizer", args.tokenizer) if args.tokenizer else spec.path,
        dtype=_dtype(args, spec, quantization, device),
        quantization=quantization,
        num_vocab=spec.text.vocab_size,
        default_sampling=default_sampling(
            spec.generation_config, args.generation_config, args.override_generation_config, max_model_len
        ),
    )


def _quantization(args: ModelArgs, spec: ModelSpec) -> Quantization | None:
    own = Quantization.from_config(spec.quantization) if spec.quantization else None
    if not args.quantization:
        return own
    if args.quantization not in QUANTIZATIONS:
        raise ArgumentError("{quantization} must be {}, got {!r}", ", ".join(QUANTIZATIONS), args.quantization)
    if args.quantization == "awq" and own is None:
        raise ArgumentError(
            "{quantization} awq: the checkpoint is not quantized, its config.json has no quantization_config"
        )
    if args.quantization != "awq" and own is not None:
        raise ArgumentError(
            "{quantization} {}: the checkpoint is already quantized by {}", args.quantization, own.method
        )
    return own or Quantization(args.quantization)


def _dtype(args: ModelArgs, spec: ModelSpec, quantization: Quantization | None, device: Device) -> str:
    if args.dtype == "auto":
        is_awq = quantization is not None and quantization.method == "awq"
        return device.awq_dtype if is_awq and device.awq_dtype and spec.dtype == "float16" else spec.dtype
    if args.dtype not in DTYPES:
        raise ArgumentError("{dtype} must be auto, {}, got {!r}", ", ".join(DTYPES), args.dtype)
    return DTYPES[args.dtype]
