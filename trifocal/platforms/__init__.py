"""Devices: what the rest of the engine asks of one is `Platform` (interface.py); which one is used is decided here.

`detect_device` imports no torch: the server process decides the device before any device code is loaded.

An out-of-tree package adds a device with an entry point of group `trifocal.platforms`, named as the device and
pointing at its `Platform` class (`npu = "trifocal_npu.platform:NpuPlatform"`). The class is imported when the device
is used; its module may then register attention backends of its own. `TRIFOCAL_PLUGINS` selects entry points by name.
"""

from __future__ import annotations

import os
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from trifocal import envs
from trifocal.errors import ConfigError
from trifocal.registry import Registry

if TYPE_CHECKING:
    from trifocal.platforms.interface import Platform

PLATFORMS: Registry[type[Platform]] = Registry(
    "device", {"cpu": "trifocal.platforms.cpu:CpuPlatform", "cuda": "trifocal.platforms.cuda:CudaPlatform"}
)


def detect_device(wanted: str) -> str:
    """The device to use for `--device wanted`. Raises `ConfigError` for one that is unknown.

    auto: an NVIDIA device, else the device of a plug-in (one is installed on purpose) if there is just one, else cpu.
    """
    plugins = load_plugins()
    if wanted != "auto":
        if wanted not in PLATFORMS:
            raise ConfigError(f"--device {wanted!r} is unknown; known: auto, {', '.join(sorted(PLATFORMS))}")
        return wanted
    has_nvidia = os.path.exists("/dev/nvidiactl") and os.environ.get("CUDA_VISIBLE_DEVICES") != ""
    if has_nvidia:
        return "cuda"
    return plugins[0] if len(plugins) == 1 else "cpu"


def get_platform(device: str) -> Platform:
    """The platform object of a device name. Raises `ConfigError` for one that is unknown."""
    load_plugins()
    return PLATFORMS.get(device)()


@cache
def load_plugins() -> tuple[str, ...]:
    """Register the platforms of installed plug-ins, once, and return their names; nothing of them is imported.

    Raises `ConfigError` where `TRIFOCAL_PLUGINS` names one that is not installed.
    """
    installed = {point.name: point.value for point in entry_points(group="trifocal.platforms")}
    wanted = envs.PLUGINS.get()
    names = sorted(installed) if wanted is None else wanted
    for name in names:
        if name not in installed:
            raise ConfigError(
                f"TRIFOCAL_PLUGINS names {name!r}, which is not installed; installed platform plug-ins: "
                f"{', '.join(sorted(installed)) or 'none'}"
            )
        PLATFORMS.register(name, installed[name])
    return tuple(names)
