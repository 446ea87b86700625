"""What the engine asks of a kind of device. Only implementations of this name a vendor's API."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from trifocal.config.devices import PlatformConfig
from trifocal.kernels.base import TORCH, Kernels
from trifocal.kernels.graphs import Graphs
from trifocal.quant.methods import METHODS, LinearMethods


@dataclass(frozen=True)
class MemoryInfo:
    """Memory of a device in bytes; on a CPU, of the machine (of its cgroup where that is smaller)."""

    free: int
    total: int


class PeakMemory:
    """Bytes by which memory rose, at most, inside a `Platform.measure_peak` block; set when the block ends."""

    num_bytes: int = 0


class Platform(ABC):
    """One kind of device, e.g. cpu or cuda. Defaults are torch's: a platform overrides what its device does better.

    What the server process must know before torch is loaded, is in `config.devices.Device`.
    """

    default_attention: str = "reference"  # a name of attention.registry.ATTENTION
    max_profile_tokens: int | None = None  # profile at most so many tokens and scale up (None: the whole budget)

    def __init__(self, config: PlatformConfig | None = None) -> None:
        """Without a `config` the environment is read."""
        self.config = config or PlatformConfig()

    @abstractmethod
    def device(self, index: int = 0) -> torch.device:
        """Make device `index` current and return it."""

    @abstractmethod
    def memory(self) -> MemoryInfo:
        """Free and total memory now."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until everything that was launched has run."""

    @abstractmethod
    def measure_peak(self) -> AbstractContextManager[PeakMemory]:
        """Measure the highest rise of memory use while a block of code runs."""

    def kernels(self) -> Kernels:
        """What layers compute with on this device: torch, where a platform brings nothing better."""
        return TORCH

    def linear_methods(self) -> LinearMethods:
        """How linear layers keep weights of each format on this device, how these are laid out, and what computes.

        Asked once, while a model is made; methods may hold kernels of their own.
        """
        return METHODS

    def graphs(self) -> Graphs | None:
        """What records the layers of a model in this device's memory, made anew; None: there is no such thing."""
        return None

    def kv_cache_setting(self, utilization: float) -> str:
        """What decides on `kv_cache_bytes`; a part of the message of an `ArgumentError`."""
        return f"{{gpu_memory_utilization}} {utilization:g}"

    @abstractmethod
    def kv_cache_bytes(self, utilization: float, activation_bytes: int) -> int:
        """Bytes to give to the KV cache after weights, for `--gpu-memory-utilization` and a profiled peak."""
