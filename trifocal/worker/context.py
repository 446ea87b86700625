"""What a worker knows about itself: rank, group, device. It is handed down: one process may hold several workers."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from trifocal.config.parallel import ParallelConfig
from trifocal.distributed import SOLO, Group, Parallel
from trifocal.platforms import get_platform
from trifocal.platforms.interface import Platform
from trifocal.worker.pixels import PixelSource


@dataclass(frozen=True, slots=True)
class WorkerContext:
    """A worker's number among all, its place among the shares of the model, its device and where pixels come from.

    `group` are the ranks that share its layers.
    """

    rank: int
    parallel: Parallel
    platform: Platform
    device: torch.device
    pixels: PixelSource
    group: Group = SOLO

    @classmethod
    def alone(cls, config: ParallelConfig, pixels: PixelSource) -> WorkerContext:
        """The only worker, on the first device of a kind, which is made current in this thread."""
        platform = get_platform(config.device, config.platform)
        return cls(0, Parallel(), platform, platform.device(), pixels)
