"""Which device is used, and plug-ins that bring more. What is asked of one is `platforms.interface.Platform`.

`detect_device` imports no torch: the server process decides the device before any device code is loaded.

An out-of-tree package adds devices by a plug-in: an entry point of group `trifocal.platforms`, named as the plug-in
(`ascend_vllm = "trifocal_npu:platforms"`). It points at a function without arguments that returns the package's devices
by name, each with its `Platform` class (`{"npu": "trifocal_npu.platform:NpuPlatform"}`), or with a `Device` where it
wants other defaults (`Device("trifocal_npu.platform:NpuPlatform", block_size=128)`); none where its device is missing.
The function must import no torch. A class is imported when its device is used; its module may then register attention
backends of its own. `TRIFOCAL_PLUGINS` selects plug-ins by their names.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points

from trifocal.config import envs
from trifocal.config.arguments import from_env
from trifocal.errors import ArgumentError
from trifocal.log import get_logger

logger = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class PlatformConfig:
    """What the environment says about devices: kernels, and GiB of KV cache with the variable that gives them."""

    cpu_kernels: str = from_env(envs.CPU_KERNELS)
    cpu_kvcache_space: float | None = from_env(envs.CPU_KVCACHE_SPACE)
    cpu_kvcache_variable: str | None = field(default_factory=lambda: envs.CPU_KVCACHE_SPACE.variable)


_GROUP = "trifocal.platforms"


@dataclass(frozen=True)
class Device:
    """A kind of device: its `Platform` as `"module:class"`, and what is best on it where the user asks for nothing."""

    platform: str
    block_size: int = 16  # tokens in a KV block
    max_num_batched_tokens: int = 2048
    awq_dtype: str | None = None  # for AWQ checkpoints in float16; None: float16, as they say


DEVICES: dict[str, Device] = {
    "cpu": Device(
        "trifocal.platforms.cpu:CpuPlatform",
        max_num_batched_tokens=512,  # a step of more would make running answers wait for seconds
        # AWQ's files say float16 because its GPU kernels want it; there is no fast float16 on most CPUs.
        awq_dtype="bfloat16",
    ),
    "cuda": Device("trifocal.platforms.cuda:CudaPlatform"),
}


def device_named(name: str) -> Device:
    """A device of this house or of a plug-in. Raises `ConfigError` naming the known ones."""
    load_plugins()
    if name not in DEVICES:
        raise ArgumentError("{device} {!r} is unknown; known: auto, {}", name, ", ".join(sorted(DEVICES)))
    return DEVICES[name]


def detect_device(wanted: str) -> str:
    """The device to use for `--device wanted`. Raises `ConfigError` for one that is unknown.

    auto: an NVIDIA device, else the device of a plug-in (one is installed on purpose) if there is just one, else cpu.
    What is wrong with plug-ins is told here, once a process, and not again by the engine's own.
    """
    devices, faults = load_plugins()
    _warn(faults)
    if wanted != "auto":
        device_named(wanted)
        return wanted
    has_nvidia = os.path.exists("/dev/nvidiactl") and os.environ.get("CUDA_VISIBLE_DEVICES") != ""
    if has_nvidia:
        return "cuda"
    return devices[0] if len(devices) == 1 else "cpu"


@cache
def load_plugins() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Register the devices of plug-ins, once. Returns their names, and a sentence for each plug-in that fails.

    As in vLLM, neither a plug-in that fails nor a name in `TRIFOCAL_PLUGINS` that is not installed stops anybody: where
    `--device` names what it would have brought, that is refused.
    """
    installed = {point.name: point for point in entry_points(group=_GROUP)}
    given = envs.PLUGINS.get()
    wanted = None if given is None else list(dict.fromkeys(given))
    faults = [
        f"{envs.PLUGINS.variable} names {name!r}, which is not installed; installed platform plug-ins: "
        f"{', '.join(sorted(installed)) or 'none'}"
        for name in wanted or ()
        if name not in installed
    ]
    devices: list[str] = []
    for name in sorted(installed) if wanted is None else [name for name in wanted if name in installed]:
        try:
            made = installed[name].load()()
            found = {key: each if isinstance(each, Device) else Device(str(each)) for key, each in made.items()}
        except Exception as error:  # whatever the code of others raises
            faults.append(f"platform plug-in {name!r} ({installed[name].value}) fails: {type(error).__name__}: {error}")
            continue
        DEVICES.update(found)
        devices += found
    return tuple(devices), tuple(faults)


@cache
def _warn(faults: tuple[str, ...]) -> None:
    for fault in faults:
        logger.warning("%s", fault)
