"""Compiles the kernels: `python -m trifocal.kernels.cpu.build`, which `make` runs, or the first start does.

The result lies in the cache folder under a name made of instruction set, sources, compiler and flags, so that a changed
source is compiled anew and nothing stale is ever loaded. No header of torch is used and nothing is linked against it.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from trifocal.config.envs import cache_folder

SOURCES = Path(__file__).parent / "src"
FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fno-exceptions", "-fopenmp", "-fPIC", "-fvisibility=hidden")
# Sampling computes what torch computes, operation by operation: none may be fused with the next. Its vectors are
# explicit; those that the compiler makes of its tables are slower.
FLAGS_OF = {"sampling.cpp": ("-ffp-contract=off", "-fno-tree-vectorize")}
_COMPILERS = ("g++", "c++", "clang++")
_WIDE = ("-march=x86-64-v4", "-mprefer-vector-width=512")


@dataclass(frozen=True)
class InstructionSet:
    """One way to compile the sources. `features` are words of /proc/cpuinfo that a machine must have."""

    name: str
    flags: tuple[str, ...]
    features: frozenset[str]

    @property
    def has_tiles(self) -> bool:
        """AMX."""
        return self.features >= _AMX


_AVX2 = frozenset(("avx2", "fma", "f16c", "bmi1", "bmi2", "movbe"))
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
_DOTS = (*_WIDE, "-mavx512vnni", "-mavx512bf16")
_AVX512_BF16 = _AVX512 | {"avx512_vnni", "avx512_bf16"}
_AMX = frozenset(("amx_tile", "amx_bf16", "amx_int8"))
# The best one first.
INSTRUCTION_SETS = (
    InstructionSet("amx", (*_DOTS, "-mamx-tile", "-mamx-bf16", "-mamx-int8"), _AVX512_BF16 | _AMX),
    InstructionSet("avx512_bf16", _DOTS, _AVX512_BF16),
    InstructionSet("avx512", _WIDE, _AVX512),
    InstructionSet("avx2", ("-march=x86-64-v3",), _AVX2),
)


class BuildError(Exception):
    """There are no kernels for this machine; the message says why, in one line."""


def cpu_features() -> frozenset[str]:
    """What this processor can do, in the words of /proc/cpuinfo; nothing where there is no such file."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    features = frozenset(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), ()))
    return features if features.isdisjoint(_AMX) or _may_use_tiles() else features - _AMX


def _may_use_tiles() -> bool:
    """Ask Linux to let this process use AMX's registers, which it must keep for each thread from then on."""
    arch_prctl, request_permission, tile_data = 158, 0x1023, 18
    return bool(ctypes.CDLL(None).syscall(arch_prctl, request_permission, tile_data) == 0)


def choose(wanted: str, features: frozenset[str]) -> InstructionSet:
    """The best instruction set of a processor, or the one `wanted` by name. Raises `BuildError`."""
    usable = [each for each in INSTRUCTION_SETS if each.features <= features]
    if wanted != "1":
        usable = [each for each in usable if each.name == wanted]
    if not usable:
        what = "AVX2" if wanted == "1" else wanted
        raise BuildError(f"this processor lacks {what}")
    return usable[0]


def compiler() -> list[str]:
    """The C++ compiler's command: $CXX, else the first one found. Raises `BuildError`."""
    given = os.environ.get("CXX", "").split()
    if given:
        return given
    for name in _COMPILERS:
        if shutil.which(name):
            return [name]
    raise BuildError(f"no C++ compiler was found ({', '.join(_COMPILERS)}; $CXX names another)")


def library_path(chosen: InstructionSet, command: Sequence[str]) -> Path:
    """The file that holds, or will hold, the kernels of the present sources."""
    digest = hashlib.sha256(repr((command, FLAGS, FLAGS_OF, chosen.flags)).encode())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.name.encode() + source.read_bytes())
    return cache_folder("kernels") / f"{chosen.name}-{digest.hexdigest()[:16]}.so"


def build(chosen: InstructionSet) -> Path:
    """Compile unless it was done before, and return the library's path. Raises `BuildError`."""
    command = compiler()
    path = library_path(chosen, command)
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=path.parent)  # another process may be compiling the same
    except OSError as error:
        raise BuildError(f"{path.parent}: {error.strerror}; TRIFOCAL_CACHE_ROOT names another folder") from None
    with folder:
        made = compile_sources([*command, *FLAGS, *chosen.flags], Path(folder.name))
        os.replace(made, path)
    return path


def compile_sources(command: Sequence[str], folder: Path) -> Path:
    """Run the compiler, files at a time as cores, and link what comes out. Raises `BuildError`."""

    def compile_one(source: Path) -> Path:
        target = folder / f"{source.stem}.o"
        _run([*command, *FLAGS_OF.get(source.name, ()), "-c", str(source), "-o", str(target)])
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, sorted(SOURCES.glob("*.cpp"))))
    # Without -fopenmp the library names no OpenMP runtime: library.py binds it to the one that torch brought.
    _run([command[0], "-shared", *map(str, objects), "-o", str(folder / "kernels.so")])
    return folder / "kernels.so"


def _run(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{command[0]}: {error}") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        raise BuildError(f"{command[0]} failed: {lines[0] if lines else f'exit status {done.returncode}'}")


def main() -> int:
    """Compile for this machine; without a compiler, say so and succeed: Trifocal runs on torch alone."""
    try:
        print(f"CPU kernels: {build(choose('1', cpu_features())).name}")
    except BuildError as error:
        print(f"CPU kernels: none, {error}. Trifocal will compute with torch alone.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
