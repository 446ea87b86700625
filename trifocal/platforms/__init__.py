"""Devices: what the rest of the engine asks of one is `Platform`; `config.devices` decides which one is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trifocal.config import devices

if TYPE_CHECKING:
    from trifocal.platforms.interface import Platform


def get_platform(device: str, config: devices.PlatformConfig | None = None) -> Platform:
    """The platform object of a device name. Raises `ConfigError` for one that is unknown."""
    devices.load_plugins()
    platform: Platform = devices.PLATFORMS.get(device)(config)
    return platform
