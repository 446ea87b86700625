"""What a whole run found, as one object that can be written as JSON and read again."""

from __future__ import annotations

import os
import platform
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.peers.cost import Rates
from benchmarks.peers.workloads import medians


@dataclass
class Figures:
    """One contender's: runs of each workload, errors by workload, starts, memory and the machine's rates beside it."""

    name: str
    engine: str
    version: str
    precision: str
    weight_bytes: int | None = None
    runs: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    start_s: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    rates: list[dict[str, float]] = field(default_factory=list)

    def median(self, workload: str) -> dict[str, float] | None:
        """Medians of a workload's figures."""
        runs = self.runs.get(workload)
        return medians(runs) if runs else None

    def value(self, workload: str, figure: str) -> float | None:
        """One of them."""
        return (self.median(workload) or {}).get(figure)

    def machine(self) -> Rates | None:
        """Medians of what the machine reached beside it."""
        return Rates(**medians(self.rates)) if self.rates else None


@dataclass
class Results:
    """All of a run."""

    machine: dict[str, Any]
    rounds: int
    contenders: list[Figures] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)

    def of(self, name: str) -> Figures | None:
        """A contender by name."""
        return next((one for one in self.contenders if one.name == name), None)

    def peers(self, precision: str | None = None) -> list[Figures]:
        """All but ours."""
        return [
            one for one in self.contenders
            if one.engine != "trifocal" and precision in (None, one.precision)
        ]  # fmt: skip

    def rates(self) -> Rates | None:
        """Medians over the whole run."""
        every = [rates for one in self.contenders for rates in one.rates]
        return Rates(**medians(every)) if every else None

    def others(self) -> float:
        """The median share of the processors that other programs took, over all runs."""
        shares = [run["others"] for one in self.contenders for runs in one.runs.values() for run in runs]
        return statistics.median(shares) if shares else 0.0


def describe_machine() -> dict[str, Any]:
    """Processor, memory, system and versions."""
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    known = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    memory = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    flags = known.get("flags", "").split()
    telling = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_bf16", "amx_int8")
    return {
        "processor": known.get("model name", platform.machine()),
        "family": known.get("cpu family", ""),
        "instructions": [flag for flag in telling if flag in flags],
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": memory,
        "kernel": platform.release().partition("-")[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
