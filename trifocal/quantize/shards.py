"""Safetensors written piece by piece, with an index where there are several."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

_SHARD_BYTES = 2 << 30  # gathered in memory before they are written


class ShardWriter:
    """Takes tensors one by one; `finish` names the files and writes the index."""

    def __init__(self, folder: Path, shard_bytes: int = _SHARD_BYTES) -> None:
        self.total_bytes = 0
        self._folder, self._shard_bytes = folder, shard_bytes
        self._waiting: dict[str, Tensor] = {}
        self._waiting_bytes = 0
        self._written: list[list[str]] = []  # names of tensors by file

    def add(self, name: str, tensor: Tensor) -> None:
        """Write `tensor`, now or later."""
        if self._waiting and self._waiting_bytes + tensor.nbytes > self._shard_bytes:
            self._flush()
        self._waiting[name] = tensor.contiguous()
        self._waiting_bytes += tensor.nbytes
        self.total_bytes += tensor.nbytes

    def finish(self) -> None:
        """Write what is left."""
        self._flush()
        count = len(self._written)
        if count == 1:
            self._path(0).rename(self._folder / "model.safetensors")
            return
        weight_map: dict[str, str] = {}
        for index, names in enumerate(self._written):
            file = f"model-{index + 1:05d}-of-{count:05d}.safetensors"
            self._path(index).rename(self._folder / file)
            weight_map |= dict.fromkeys(names, file)
        index_file = {"metadata": {"total_size": self.total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
        text = json.dumps(index_file, indent=2) + "\n"
        (self._folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")

    def _flush(self) -> None:
        if self._waiting:
            save_file(self._waiting, self._path(len(self._written)), metadata={"format": "pt"})
            self._written.append(list(self._waiting))
            self._waiting, self._waiting_bytes = {}, 0

    def _path(self, index: int) -> Path:
        return self._folder / f"part-{index}.safetensors"
