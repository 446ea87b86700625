"""NVIDIA devices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from trifocal.errors import ArgumentError
from trifocal.platforms.interface import MemoryInfo, PeakMemory, Platform


class CudaPlatform(Platform):
    """One CUDA device per worker; the allocator keeps PYTORCH_CUDA_ALLOC_CONF as the user set it."""

    def device(self, index: int = 0) -> torch.device:
        """Make device `index` current. Raises `ArgumentError` where torch sees no such device."""
        if index >= torch.cuda.device_count():
            built = torch.version.cuda is not None
            why = f"torch sees {torch.cuda.device_count()}" if built else "this torch is built without CUDA"
            raise ArgumentError("{device} cuda: device {} cannot be used, {}", index, why)
        torch.cuda.set_device(index)
        return torch.device("cuda", index)

    def memory(self) -> MemoryInfo:
        """Of the current device, all processes counted; blocks that torch caches count as free."""
        free, total = torch.cuda.mem_get_info()
        cached = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return MemoryInfo(free=free + cached, total=total)

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    @contextmanager
    def measure_peak(self) -> Iterator[PeakMemory]:
        """Rise of what torch reserved, so that the gaps of its allocator are counted."""
        peak = PeakMemory()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_reserved()
        yield peak
        torch.cuda.synchronize()
        peak.num_bytes = torch.cuda.max_memory_reserved() - before

    def kv_cache_bytes(self, utilization: float, activation_bytes: int) -> int:
        """What `utilization` of the device's memory leaves after everything that is in use, activations included."""
        memory = self.memory()
        used = memory.total - memory.free
        return max(0, int(utilization * memory.total) - used - activation_bytes)
