"""The CPU as a device: memory of the machine or of the control group (container) that bounds this process."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from trifocal.kernels.base import TORCH, Kernels
from trifocal.kernels.cpu.capture import CpuGraphs
from trifocal.kernels.cpu.library import load
from trifocal.kernels.cpu.ops import CpuKernels
from trifocal.platforms.cpu_linear import CpuLinearMethods
from trifocal.platforms.interface import MemoryInfo, PeakMemory, Platform
from trifocal.quant.methods import METHODS, LinearMethods

_GIB = 1 << 30
_DEFAULT_KV_CACHE_BYTES = 4 * _GIB  # the machine is shared with other programs: more is asked for by name
_CGROUP_FILES = (  # (limit, use, key of reclaimable file pages in memory.stat)
    ("memory.max", "memory.current", "inactive_file"),  # version 2
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),  # version 1
)


class CpuPlatform(Platform):
    """Threads are torch's own (OMP_NUM_THREADS)."""

    default_attention = "cpu"
    max_profile_tokens = 256

    def device(self, index: int = 0) -> torch.device:
        return torch.device("cpu")

    def memory(self) -> MemoryInfo:
        """What can be taken without swapping, and what there is: of the machine or of the tightest control group."""
        info = _proc_fields(Path("/proc/meminfo"))
        free, total = info["MemAvailable"], info["MemTotal"]
        for limit, used in _cgroup_limits():
            free, total = min(free, max(limit - used, 0)), min(total, limit)
        return MemoryInfo(free=free, total=total)

    def synchronize(self) -> None:
        """Nothing runs ahead of Python on a CPU."""

    def kernels(self) -> Kernels:
        """The compiled kernels; torch where there are none (a line in the log says why)."""
        library = load(self.config.cpu_kernels)
        return TORCH if library is None else CpuKernels(library)

    def linear_methods(self) -> LinearMethods:
        """Weights in blocks where there are kernels to read them."""
        kernels = self.kernels()
        return CpuLinearMethods(kernels) if isinstance(kernels, CpuKernels) else METHODS

    def graphs(self) -> CpuGraphs | None:
        """Recordings of the compiled kernels' calls."""
        library = load(self.config.cpu_kernels)
        return None if library is None else CpuGraphs(library)

    @contextmanager
    def measure_peak(self) -> Iterator[PeakMemory]:
        """Rise of the resident set's high-water mark, which is first brought down to the present where Linux allows.

        Where it does not, a rise below an earlier peak of this process is not seen.
        """
        peak = PeakMemory()
        _reset_high_water_mark()
        before = _high_water_mark()
        yield peak
        peak.num_bytes = _high_water_mark() - before

    def kv_cache_setting(self, utilization: float) -> str:
        """The variable, where it is set."""
        variable, space = self.config.cpu_kvcache_variable, self.config.cpu_kvcache_space
        return super().kv_cache_setting(utilization) if space is None else f"{variable}={space:g}"

    def kv_cache_bytes(self, utilization: float, activation_bytes: int) -> int:
        """`TRIFOCAL_CPU_KVCACHE_SPACE`, else what `utilization` of the memory leaves, at most 4 GiB."""
        wanted = self.config.cpu_kvcache_space
        if wanted is not None:
            return int(wanted * _GIB)
        memory = self.memory()
        used = memory.total - memory.free
        left = int(utilization * memory.total) - used - activation_bytes
        return max(0, min(left, _DEFAULT_KV_CACHE_BYTES))


def _proc_fields(path: Path) -> dict[str, int]:
    """Fields of /proc/meminfo or /proc/self/status that are in kB, in bytes."""
    found = {}
    for line in path.read_text().splitlines():
        name, _, value = line.partition(":")
        words = value.split()
        if len(words) == 2 and words[1] == "kB":
            found[name] = int(words[0]) * 1024
    return found


def _high_water_mark() -> int:
    """Most bytes that were resident; getrusage's figure, which knows no reset, where /proc lacks one."""
    value = _proc_fields(Path("/proc/self/status")).get("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 if value is None else value


def _reset_high_water_mark() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # read-only /proc, or a kernel without it
        return


def _cgroup_limits(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[tuple[int, int]]:
    """(limit, use without reclaimable file pages) in bytes of this process's group and of the groups around it."""
    limits = []
    for folder in _cgroup_folders(root, own):
        for limit_file, use_file, reclaimable in _CGROUP_FILES:
            limit, used = _number(folder / limit_file), _number(folder / use_file)
            if limit is None or used is None or limit >= 1 << 60:  # version 1 writes "no limit" as a huge number
                continue
            limits.append((limit, max(0, used - _stat(folder / "memory.stat", reclaimable))))
    return limits


def _cgroup_folders(root: Path, own: Path) -> list[Path]:
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return []
    folders = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / "memory" if controllers else root
        group = top / path.lstrip("/")
        # Inside a container the path may be the host's and absent here: the container's own group is then the top.
        folders += [folder for folder in (group, *group.parents) if folder == top or top in folder.parents]
    return list(dict.fromkeys(folders))


def _number(path: Path) -> int | None:
    """A file of one number; None for "max" or an absent file."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _stat(path: Path, key: str) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.split()[0] == key), 0)
