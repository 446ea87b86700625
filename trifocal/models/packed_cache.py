"""Weights as kernels read them, kept in a file: the next start of the same checkpoint need not make them again.

A file's name stands for the checkpoint (its path, its files, their sizes and times), for the format that is asked for,
for the rank whose share it is and for the sources that make it. Whatever changes, another file is made, and the old one
is removed.

Layout: 8 bytes, the length of the JSON that follows; then tensors as the JSON says, each from a multiple of 64 on.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import mmap
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import torch
from torch import Tensor, nn

from trifocal.config.envs import cache_folder
from trifocal.kernels.pages import forget
from trifocal.log import get_logger

logger = get_logger(__name__)

_ALIGNMENT = 64
_PACKAGE = Path(__file__).parents[1]
_SOURCES = ("quant/*.py", "kernels/*.py", "layers/*.py", "models/**/*.py")


class PackedCache:
    """The file for one checkpoint in one format."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def of(cls, folder: Path, wanted: object, layout: type = object) -> PackedCache:
        """That of a checkpoint folder. `repr(wanted)` tells the format from others; class `layout` lays it out."""
        folder = folder.resolve()
        files = [(path.name, *_state(path)) for path in sorted(folder.iterdir()) if path.is_file()]
        paths = [path for pattern in _SOURCES for path in sorted(_PACKAGE.glob(pattern))]
        sources = [path.read_bytes() for path in (*paths, *_source_of(layout))]
        name = f"{_digest([repr((str(folder), wanted)).encode()])}-{_digest([repr(files).encode(), *sources])}.bin"
        return cls(cache_folder("weights") / name)

    def restore(self, model: nn.Module) -> bool:
        """Fill all parameters of `model`; false, and nothing is done, if the file is not there or not whole."""
        head, offsets, total = _layout(model)
        try:
            with open(self.path, "rb") as file:
                if os.fstat(file.fileno()).st_size != total or file.read(len(head)) != head:
                    logger.warning("the packed weights in %s are incomplete and are made again", self.path.name)
                    return False
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except FileNotFoundError:
            return False
        except OSError as error:
            logger.warning("the packed weights in %s cannot be read: %s", self.path.name, error.strerror)
            return False
        memory = torch.frombuffer(mapped, dtype=torch.uint8)
        with torch.no_grad():
            for parameter, offset in zip(model.parameters(), offsets, strict=True):
                part = memory[offset : offset + parameter.nbytes]
                _bytes(parameter).copy_(part)
                forget(part)
        return True

    def keep(self, model: nn.Module) -> None:
        """Write all parameters of `model`; where that fails, one line in the log says so."""
        head, offsets, total = _layout(model)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.path.parent, suffix=".part", delete=False) as file:
                try:
                    _write(file, head, zip(model.parameters(), offsets, strict=True), total)
                    os.replace(file.name, self.path)
                except BaseException:
                    os.unlink(file.name)
                    raise
            for path in self.path.parent.glob(f"{self.path.name.partition('-')[0]}-*.bin"):
                if path != self.path:
                    path.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("the packed weights could not be written to %s: %s", self.path.parent, error.strerror)


def _source_of(layout: type) -> list[Path]:
    """The file of a class, which may be a plug-in's; none for one of Python's own."""
    try:
        return [Path(inspect.getfile(layout))]
    except TypeError:
        return []


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]


def _layout(model: nn.Module) -> tuple[bytes, list[int], int]:
    """What the file begins with, where each parameter lies, and the file's size."""
    parameters = list(model.named_parameters())
    text = json.dumps([(name, str(each.dtype), list(each.shape)) for name, each in parameters]).encode()
    head = len(text).to_bytes(8, "little") + text
    offsets, total = [], len(head)
    for _, each in parameters:
        offset = -(-total // _ALIGNMENT) * _ALIGNMENT
        offsets.append(offset)
        total = offset + each.nbytes
    return head, offsets, total


def _bytes(parameter: Tensor) -> Tensor:
    return parameter.detach().view(-1).view(torch.uint8)


def _write(file: IO[bytes], head: bytes, tensors: Iterable[tuple[Tensor, int]], total: int) -> None:
    file.write(head)
    for parameter, offset in tensors:
        file.seek(offset)
        file.write(_bytes(parameter).cpu().numpy().data)
    file.truncate(total)
