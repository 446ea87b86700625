"""Devices: what the rest of the engine asks of one is `Platform`; `config.devices` decides which one is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trifocal.config.devices import PLATFORMS, load_plugins

if TYPE_CHECKING:
    from trifocal.platforms.interface import Platform


def get_platform(device: str) -> Platform:
    """The platform object of a device name. Raises `ConfigError` for one that is unknown."""
    load_plugins()
    platform: Platform = PLATFORMS.get(device)()
    return platform
