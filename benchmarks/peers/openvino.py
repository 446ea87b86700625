"""OpenVINO GenAI: its Python found, and the checkpoint exported to what it reads."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

from benchmarks.peers.contender import Contender, Precision, worker
from benchmarks.peers.process import ContenderError

_FORMATS: tuple[tuple[Precision, str], ...] = (("bf16", "fp16"), ("int8", "int8"), ("int4", "int4"))  # computed, stored


def contenders(model: Path, home: Path) -> list[Contender]:
    """One a format; `home` is where scripts/build-openvino put both Pythons, and where exports are kept.

    Raises `ContenderError` where it is not there, or does not export the checkpoint.
    """
    python = home / "runtime" / "bin" / "python"
    if not os.access(python, os.X_OK):
        raise ContenderError("it is not here (scripts/build-openvino fetches it)")
    version = _version(python)
    return [_contender(python, version, precision, _export(model, home, kind)) for precision, kind in _FORMATS]


def _version(python: Path) -> str:
    words = "import importlib.metadata; print(importlib.metadata.version('openvino-genai'))"
    done = subprocess.run([python, "-c", words], capture_output=True, text=True)
    if done.returncode:
        raise ContenderError(f"{python} has no openvino-genai: {done.stderr.strip()[-200:]}")
    return done.stdout.strip()


def _contender(python: Path, version: str, precision: Precision, folder: Path) -> Contender:
    """Its own defaults, but for all processors; and float16 weights are computed in bfloat16."""
    properties: dict[str, str | int] = {"INFERENCE_NUM_THREADS": len(os.sched_getaffinity(0))}
    if precision == "bf16":
        properties["INFERENCE_PRECISION_HINT"] = "bf16"
    script = Path(__file__).with_name("openvino_worker.py")
    return Contender(
        f"OpenVINO {precision}", "openvino", version, precision,
        worker([str(python), "-P", str(script), str(folder), json.dumps(properties)]),  # -P: this file is no openvino
        weight_bytes=(folder / "openvino_language_model.bin").stat().st_size,  # the embeddings' table is another file
    )  # fmt: skip


def _export(model: Path, home: Path, kind: str) -> Path:
    """The checkpoint in a format, made when it is not there yet: one to three minutes."""
    folder = home / "models" / f"{model.name}-{kind}"
    if folder.is_dir():
        return folder
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.parent.mkdir(parents=True, exist_ok=True)
    python = home / "export" / "bin" / "python"
    words = ["-m", "optimum.commands.optimum_cli", "export", "openvino", "--model", str(model)]
    words += ["--task", "image-text-to-text", "--weight-format", kind, str(part)]
    try:
        done = subprocess.run(
            [str(python), *words], capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
        )
    except OSError as error:
        raise ContenderError(
            f"{python}, needed once to export {folder.name}, cannot be started: {error.strerror}"
        ) from None
    if done.returncode or not (part / "openvino_language_model.bin").is_file():
        raise ContenderError(f"{folder.name} could not be exported: {(done.stderr or done.stdout).strip()[-300:]}")
    part.rename(folder)
    return folder
