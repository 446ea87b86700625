"""Devices: what the rest of the engine asks of one is `Platform`; `config.devices` decides which one is used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from trifocal.config.devices import PlatformConfig, device_named

if TYPE_CHECKING:
    from trifocal.platforms.interface import Platform


def get_platform(device: str, config: PlatformConfig | None = None) -> Platform:
    """The platform object of a device name. Raises `ConfigError` for one that is unknown."""
    module, _, name = device_named(device).platform.partition(":")
    platform: Platform = getattr(import_module(module), name)(config)
    return platform
