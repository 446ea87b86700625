"""llama.cpp: its server found, and the checkpoint converted to what it reads."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.peers.contender import Contender, Precision, server
from benchmarks.peers.process import ContenderError

_STREAMS, _CONTEXT = 32, 40960  # slots share one cache
_FORMATS: tuple[tuple[str, Precision, tuple[str, ...] | None], ...] = (
    ("BF16", "bf16", None),
    ("Q8_0", "int8", None),
    ("Q4_0", "int4", None),
    ("Q4_0-pure", "int4", ("text1",)),  # it is there for one line of the table
)


def contenders(model: Path, home: Path, folder: Path | None) -> list[Contender]:
    """One a format; `home` is where scripts/build-llama-cpp put it and where files are kept, `folder` another build.

    Raises `ContenderError` where llama.cpp or its converter is missing or fails.
    """
    program = find_program("llama-server", home, folder)
    version = _version(program)
    files = _Files(model, home, folder)
    return [
        _contender(program, version, name, precision, files.text(name), files.vision(), only)
        for name, precision, only in _FORMATS
    ]


def find_program(name: str, home: Path, folder: Path | None) -> Path:
    """In the folder that was named, else in PATH or in `home`."""
    known = [home / "build" / "bin" / name]
    if folder is not None:
        known = [folder / name, folder / "bin" / name, folder / "build" / "bin" / name]
    elif (in_path := shutil.which(name)) is not None:
        known.insert(0, Path(in_path))
    for path in known:
        if os.access(path, os.X_OK):
            return path
    raise ContenderError(f"no {name} (build one with scripts/build-llama-cpp, or name its folder by --llama-cpp)")


def _version(program: Path) -> str:
    done = subprocess.run([program, "--version"], capture_output=True, text=True)
    words = done.stdout + done.stderr
    found = re.search(r"build (\d+)", words) or re.search(r"version: (\S+)", words)
    return found[1] if found else "?"


def _contender(
    program: Path, version: str, name: str, precision: Precision, text: Path, vision: Path, only: tuple[str, ...] | None
) -> Contender:  # fmt: skip
    threads = str(len(os.sched_getaffinity(0)))
    words = ["-m", str(text), "--mmproj", str(vision), "-t", threads, "-tb", threads, "--host", "127.0.0.1"]
    words += ["--parallel", str(_STREAMS), "-c", str(_CONTEXT), "--kv-unified"]

    def command(port: int) -> list[str]:
        return [str(program), *words, "--port", str(port)]

    return Contender(
        f"llama.cpp {name}", "llama.cpp", version, precision, server(command, fields={"cache_prompt": False}),
        weight_bytes=text.stat().st_size, only=only,
    )  # fmt: skip


class _Files:
    """GGUF files of one checkpoint, made when they are asked for."""

    def __init__(self, model: Path, home: Path, folder: Path | None) -> None:
        self._model, self._home, self._folder = model, home, folder

    def text(self, name: str) -> Path:
        """The language model in a format of llama.cpp."""
        file = self._file(name)
        if file.is_file():
            return file
        if name == "BF16":
            return self._convert(file)
        kind, _, pure = name.partition("-")
        flags = ["--pure"] if pure else []
        quantize = find_program("llama-quantize", self._home, self._folder)
        return self._make(file, lambda part: [quantize, *flags, self.text("BF16"), part, kind])

    def vision(self) -> Path:
        """The vision tower."""
        file = self._file("vision-BF16")
        return file if file.is_file() else self._convert(file, "--mmproj")

    def _file(self, name: str) -> Path:
        return self._home / "gguf" / f"{self._model.name}-{name}.gguf"

    def _convert(self, file: Path, *flags: str) -> Path:
        sources = [source for source in (self._folder, self._home / "source") if source is not None]
        scripts = [source / "convert_hf_to_gguf.py" for source in sources]
        script = next(filter(Path.is_file, scripts), None)
        if script is None:
            raise ContenderError(f"no convert_hf_to_gguf.py, needed once to make {file.name}")
        words = [sys.executable, script, self._model, "--outtype", "bf16", *flags, "--outfile"]
        return self._make(file, lambda part: [*words, part], {"PYTHONPATH": str(script.parent / "gguf-py")})

    def _make(
        self, file: Path, command: Callable[[Path], list[Any]], env: dict[str, str] | None = None
    ) -> Path:  # fmt: skip
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part.gguf")
        done = subprocess.run(command(part), capture_output=True, text=True, env={**os.environ, **(env or {})})
        if done.returncode or not part.is_file():
            raise ContenderError(f"{file.name} could not be made: {(done.stderr or done.stdout).strip()[-300:]}")
        part.rename(file)
        return file
