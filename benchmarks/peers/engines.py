"""Who takes part: Trifocal in each format, and every peer that is found on this machine."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import trifocal
from benchmarks.peers import llamacpp, openvino
from benchmarks.peers.contender import Contender, Precision, server, worker
from benchmarks.peers.process import ContenderError
from trifocal.subprocesses import python_module, python_path

PRECISIONS: tuple[Precision, ...] = ("bf16", "int8", "int4")


@dataclass(frozen=True)
class Absent:
    """A peer that does not take part, and why."""

    name: str
    reason: str


def ours(model: Path, precisions: tuple[Precision, ...]) -> list[Contender]:
    """Trifocal's server with its defaults."""
    sizes = _weight_bytes(model, precisions)
    return [_our_server(model, precision, sizes.get(precision)) for precision in precisions]


def _our_server(model: Path, precision: Precision, weight_bytes: int | None) -> Contender:
    words = [str(model), "--served-model-name", "bench", "--host", "127.0.0.1", "--uvicorn-log-level", "warning"]
    words += ["--quantization", precision] if precision != "bf16" else []

    def command(port: int) -> list[str]:
        return python_module("trifocal", "serve", *words, "--port", str(port))

    return Contender(
        f"Trifocal {precision}", "trifocal", trifocal.__version__, precision,
        server(command, {**python_path(), "TRIFOCAL_LOGGING_LEVEL": "warning"}),
        weight_bytes=weight_bytes,
    )  # fmt: skip


def _weight_bytes(model: Path, precisions: tuple[Precision, ...]) -> dict[str, int]:
    """By precision; none where they cannot be counted."""
    command = [sys.executable, "-m", "benchmarks.peers.weight_bytes", str(model), *precisions]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **python_path()})
    return {} if done.returncode else dict(json.loads(done.stdout.splitlines()[-1]))


def find_peers(
    model: Path, cache: Path, llama_cpp: Path | None = None, vllm: str | None = None
) -> tuple[list[Contender], list[Absent]]:  # fmt: skip
    """All peers that are here, and those that are not."""
    here: list[Contender] = []
    absent: list[Absent] = []
    for name, find in (
        ("llama.cpp", lambda: llamacpp.contenders(model, cache / "llama.cpp", llama_cpp)),
        ("vLLM", lambda: [_vllm(model, cache / "vllm", vllm)]),
        ("OpenVINO GenAI", lambda: openvino.contenders(model, cache / "openvino")),
        ("transformers", lambda: [_transformers(model)]),
    ):
        try:
            here += find()
        except ContenderError as error:
            absent.append(Absent(name, str(error)))
    return here, absent


def _transformers(model: Path) -> Contender:
    if importlib.util.find_spec("transformers") is None:
        raise ContenderError("it is not installed here")
    command = [sys.executable, str(Path(__file__).with_name("transformers_worker.py")), str(model)]
    version = importlib.metadata.version("transformers")
    return Contender("transformers bf16", "transformers", version, "bf16", worker(command, python_path()))


def _vllm(model: Path, home: Path, named: str | None) -> Contender:
    """vLLM for CPUs, with limits that keep its profiling short: without them it draws a picture of 12 megapixels.

    `home` is where scripts/build-vllm put it.
    """
    program = named or shutil.which("vllm") or shutil.which("vllm", path=home / "bin")
    if program is None:
        raise ContenderError("no vllm in PATH (build it with scripts/build-vllm, or name one by --vllm)")
    done = subprocess.run([program, "--version"], capture_output=True, text=True)
    if done.returncode:
        raise ContenderError(f"{program} --version failed: {done.stderr.strip()[-200:]}")
    limits = ["--max-model-len", "4096", "--max-num-seqs", "32", "--limit-mm-per-prompt", '{"image": 1, "video": 0}']
    limits += ["--mm-processor-kwargs", '{"max_pixels": 401408}', "--dtype", "bfloat16"]

    def command(port: int) -> list[str]:
        return [program, "serve", str(model), "--host", "127.0.0.1", "--port", str(port), *limits]

    version = (done.stdout.split() or ["?"])[-1]
    return Contender("vLLM bf16", "vllm", version, "bf16", server(command, _vllm_env(program)))


def _vllm_env(program: str) -> dict[str, str]:
    """All processors are its own, as they are everybody's here; and Intel's OpenMP, where its environment has it."""
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    env = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_OMP_THREADS_BIND": cores, "VLLM_NO_USAGE_STATS": "1"}
    openmp = Path(program).parent.parent / "lib" / "libiomp5.so"
    return env | ({"LD_PRELOAD": str(openmp.resolve())} if openmp.is_file() else {})
