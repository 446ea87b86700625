"""Contract of captured layers: what a device recorded of them once it does again for other inputs, without Python."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

from torch import Tensor


class CaptureError(Exception):
    """The layers do something that the device cannot record; the message names it."""


class Graph(Protocol):
    """One recording."""

    def replay(self, inputs: Sequence[Tensor]) -> Tensor:
        """The layers' result for other inputs of the same shapes and dtypes.

        It lies in memory that the next replay of any graph of the same `Graphs` writes to.
        """
        ...


class Graphs(Protocol):
    """Records layers on one device."""

    def capture(self, layers: Callable[..., Tensor], *inputs: Tensor) -> Graph:
        """Record what `layers(*inputs)` does. Raises `CaptureError`.

        Layers may depend on nothing else that changes but by way of memory whose address stays. Whether they compute
        anything meanwhile, and what they write, is the device's choice: inputs must be such that it does not matter.
        """
        ...

    def setting(self) -> Hashable:
        """What a recording depends on beside shapes and dtypes: it is not replayed under another one."""
        ...

    def most_rows(self, num_rows: int) -> int:
        """How many rows a step of `num_rows` may be padded to and still be quicker than run by Python."""
        ...
