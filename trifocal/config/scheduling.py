"""How much one step, one sequence and one request may be."""

from __future__ import annotations

from dataclasses import dataclass

from trifocal.config import envs
from trifocal.config.arguments import arg, at_least_one, decided, part
from trifocal.config.devices import Device
from trifocal.errors import ArgumentError


@dataclass(frozen=True, kw_only=True)
class SchedulingArgs:
    """Arguments about what is computed together."""

    max_model_len: int | None = arg(
        "scheduling",
        "longest context in tokens; default, auto or -1: as long as the model allows and the KV cache holds",
        None,
        means_none=("auto", -1),
    )
    max_num_seqs: int = arg("scheduling", "most sequences in one step; further requests wait", 256)
    max_num_batched_tokens: int | None = arg(
        "scheduling", "most tokens computed in one step (default: 512 on a CPU, else 2048)", None
    )
    enable_chunked_prefill: bool = arg("scheduling", "compute a long prompt in several steps", True)
    enable_prefix_caching: bool = arg("scheduling", "reuse KV blocks of prompts that begin alike", True)
    max_logprobs: int = arg("scheduling", "most logprobs a request may ask for; -1: the whole vocabulary", 20)


@dataclass(frozen=True, kw_only=True)
class SchedulingConfig(SchedulingArgs):
    """`SchedulingArgs`, decided."""

    max_model_len: int = decided()
    is_max_model_len_explicit: bool = False
    max_num_batched_tokens: int = decided()


def scheduling_config(args: SchedulingArgs, longest: int, device: Device) -> SchedulingConfig:
    """Decide; `longest` is the model's own limit of the context. Raises `ConfigError`."""
    max_model_len = _max_model_len(args, longest)
    at_least_one("max_num_seqs", args.max_num_seqs)
    if args.max_logprobs < -1:
        raise ArgumentError("{max_logprobs} must be at least -1 (all of the vocabulary), got {}", args.max_logprobs)
    return part(
        SchedulingConfig,
        args,
        max_model_len=max_model_len,
        is_max_model_len_explicit=args.max_model_len is not None,
        max_num_batched_tokens=_max_num_batched_tokens(args, max_model_len, device),
    )


def _max_model_len(args: SchedulingArgs, longest: int) -> int:
    if args.max_model_len is None:
        return longest
    at_least_one("max_model_len", args.max_model_len)
    if args.max_model_len > longest and not envs.ALLOW_LONG_MAX_MODEL_LEN.get():
        raise ArgumentError(
            "{max_model_len} {} is above the model's own limit of {} (max_position_embeddings in config.json); set "
            "VLLM_ALLOW_LONG_MAX_MODEL_LEN=1 to go beyond it",
            args.max_model_len,
            longest,
        )
    return args.max_model_len


def _max_num_batched_tokens(args: SchedulingArgs, max_model_len: int, device: Device) -> int:
    value = args.max_num_batched_tokens
    if value is None:
        value = device.max_num_batched_tokens
        return value if args.enable_chunked_prefill else max(value, max_model_len)
    at_least_one("max_num_batched_tokens", value)
    if not args.enable_chunked_prefill and value < max_model_len:
        raise ArgumentError(
            "{max_num_batched_tokens} {} is below {max_model_len} {}: raise it, or leave chunked prefill on "
            "({enable_chunked_prefill})",
            value,
            max_model_len,
        )
    return value
