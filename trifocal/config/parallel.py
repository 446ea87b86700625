"""Which devices compute, how workers run on them, and which of their steps are captured."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from trifocal.config.arguments import arg, at_least_one, decided, part
from trifocal.config.compilation import capture_sizes
from trifocal.config.devices import PlatformConfig
from trifocal.errors import ArgumentError, NotAvailableYetError


@dataclass(frozen=True, kw_only=True)
class ParallelArgs:
    """Arguments about devices."""

    device: str = arg("devices", "auto, cpu, cuda or the name of a plug-in's platform", "auto")
    tensor_parallel_size: int = arg("devices", "devices that share each layer", 1)
    pipeline_parallel_size: int = arg("devices", "groups of devices that share the stack of layers", 1)
    distributed_executor_backend: str | None = arg(
        "devices", "how workers run: uni (this process), mp, ray", None, choices=["uni", "mp", "ray"]
    )
    enforce_eager: bool = arg("devices", "never capture steps for replay; Python runs every layer", False)
    compilation_config: dict[str, Any] = arg(
        "devices",
        'JSON; {"cudagraph_capture_sizes": [1, 2, 4]}: capture steps of so many tokens; "max_cudagraph_capture_size": '
        'the largest of them; "cudagraph_mode": "NONE": the same as --enforce-eager; other keys, or a number, are for '
        "torch.compile, which is not used",
        {},
        number_is="mode",
    )
    cudagraph_capture_sizes: list[int] | None = arg(
        "devices", "the same as the key of this name in --compilation-config", None, also=["cuda_graph_sizes"]
    )
    max_cudagraph_capture_size: int | None = arg(
        "devices", "the same as the key of this name in --compilation-config", None
    )
    optimization_level: int | None = arg(
        "devices",
        "0: the same as --enforce-eager; 1 to 3: no effect, as there is no torch.compile; -O3 is short for "
        "--optimization-level 3",
        None,
    )


@dataclass(frozen=True, kw_only=True)
class ParallelConfig(ParallelArgs):
    """`ParallelArgs`, decided. `capture_sizes` are the tokens of steps that may be captured and replayed."""

    distributed_executor_backend: str = decided()
    capture_sizes: tuple[int, ...]
    platform: PlatformConfig = field(default_factory=PlatformConfig)


def parallel_config(args: ParallelArgs, device: str) -> ParallelConfig:
    """Decide; `device` is the one in use. Raises `ConfigError`."""
    backend = args.distributed_executor_backend
    at_least_one("tensor_parallel_size", args.tensor_parallel_size)
    at_least_one("pipeline_parallel_size", args.pipeline_parallel_size)
    num_devices = args.tensor_parallel_size * args.pipeline_parallel_size
    if num_devices > 1:
        raise NotAvailableYetError(
            "{tensor_parallel_size} x {pipeline_parallel_size} = {} devices (1 works)", num_devices
        )
    if backend in ("mp", "ray"):
        raise NotAvailableYetError("{distributed_executor_backend} {} (uni works)", backend)
    if backend not in (None, "uni"):
        raise ArgumentError("{distributed_executor_backend} must be uni, got {!r}", backend)
    return part(
        ParallelConfig,
        args,
        device=device,
        distributed_executor_backend="uni",
        capture_sizes=_capture_sizes(args),
    )


def _capture_sizes(args: ParallelArgs) -> tuple[int, ...]:
    config = dict(args.compilation_config)
    for name in ("cudagraph_capture_sizes", "max_cudagraph_capture_size"):
        value = getattr(args, name)
        if value is not None and config.setdefault(name, value) != value:
            raise ArgumentError(
                f"{{{name}}} {{}} and {name} in {{compilation_config}}, {{}}, are not the same", value, config[name]
            )
    if args.optimization_level is not None and args.optimization_level not in range(4):
        raise ArgumentError("{optimization_level} must be 0, 1, 2 or 3, got {}", args.optimization_level)
    sizes = capture_sizes(config)
    return () if args.enforce_eager or args.optimization_level == 0 else sizes
