"""The checkpoint that is read: single tensors by name, never all of them."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from trifocal.models.base import Model
from trifocal.models.loader import fill, materialize, tensor_files, unreadable, weight_slots, without_weights


class Source:
    """A folder's safetensors, mapped. Raises `ConfigError` for files that cannot be read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = tensor_files(folder)
        if not self.files:
            raise without_weights(folder)
        self._stack = ExitStack()
        self._shards: dict[str, Any] = {}

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def read(self, name: str) -> Tensor:
        """The tensor of this name, a view of the mapped file."""
        from safetensors import SafetensorError, safe_open

        file = self.files[name]
        try:
            if file not in self._shards:
                self._shards[file] = self._stack.enter_context(safe_open(self.folder / file, framework="pt"))
            tensor: Tensor = self._shards[file].get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise unreadable(self.folder / file, error) from None
        return tensor

    def fill(self, model: Model, module: nn.Module, names: list[str], prefix: str = "") -> None:
        """Give `module`, the part of `model` at the path `prefix`, memory and the tensors called `names`."""
        materialize(module, torch.device("cpu"))
        slots = {f"{prefix}{name}": slot for name, slot in weight_slots(module).items()}
        fill(model, slots, ((self.files[name], name, self.read(name)) for name in names), self.folder.name)


def release(module: nn.Module) -> None:
    """Give the memory of a module's parameters back; they keep their shapes."""
    materialize(module, torch.device("meta"))
