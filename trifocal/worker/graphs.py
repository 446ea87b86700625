"""Which steps are run from recordings, and how a step is padded to the size of one."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Hashable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from trifocal.attention.base import AttentionBackend, AttentionBatch
from trifocal.kernels.graphs import CaptureError, Graph, Graphs
from trifocal.log import get_logger
from trifocal.models.base import Model
from trifocal.models.decoder import RunLayers, run_layers

logger = get_logger(__name__)


class _Step(NamedTuple):
    """What a forward pass takes; see `Model.forward`."""

    inputs: tuple[Tensor, ...]
    positions: Tensor
    attention: AttentionBatch
    is_long: Tensor | None


class GraphRunner:
    """Runs the forward pass of every step; the layers of a step with as many rows as one of `sizes` are replayed.

    A recording stands for a number of rows, however they are split into sequences. A step that has a few rows less is
    padded to the next size. Rows of padding are sequences of one token that read and write `scratch_block`, which no
    sequence is ever given, and what they yield is cut off.
    """

    def __init__(
        self,
        model: Model,
        attention: AttentionBackend,
        graphs: Graphs | None,
        sizes: Collection[int] = (),
        scratch_block: int = 0,
    ) -> None:
        """`graphs` is what the device records with; None: nothing is captured. So it is without `sizes`."""
        self.model = model
        self.attention = attention
        self.sizes = sorted(set(sizes))
        self.num_replayed = 0
        self._graphs = graphs
        self._scratch_block = scratch_block
        self._recordings: dict[Hashable, Graph] = {}
        if graphs is None:
            self.sizes = []
        elif self.sizes and not attention.can_be_captured:
            self._give_up("torch computes attention, as no kernel reads this KV cache")

    def __call__(
        self,
        inputs: tuple[Tensor, ...],
        positions: Tensor,
        attention: AttentionBatch,
        is_long: Tensor | None = None,
    ) -> Tensor:
        """Hidden states [n, hidden_size] of a step's n rows, which hold until the next call; see `Model.forward`."""
        num_rows = len(inputs[0])
        size = self._size_for(num_rows) if len(inputs) == 1 else None  # rows for later layers are not recorded
        step = _Step(inputs, positions, attention, is_long)
        if size is None:
            return self._forward(step, run_layers)
        return self._forward(self._padded(step, size), self._replay)[:num_rows]

    def capture(self, device: torch.device) -> None:
        """Make all recordings ahead of use, the largest first: the others share its memory."""
        for size in reversed(self.sizes):
            if self.sizes:  # none is left once it is seen that the layers cannot be captured
                self._forward(self._padded(self._empty_step(device), size), self._record)

    def _forward(self, step: _Step, run: RunLayers) -> Tensor:
        self.attention.begin(step.attention)
        hidden: Tensor = self.model(step.inputs, step.positions, self.attention, step.is_long, run)
        return hidden

    # ------------------------------------------------------------------------------------------ recordings

    def _replay(self, layers: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        graph = self._graph(layers, *inputs)
        if graph is None:
            return layers(*inputs)
        self.num_replayed += 1
        return graph.replay(inputs)

    def _record(self, layers: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        self._graph(layers, *inputs)
        return inputs[0]  # of the right shape; nobody looks at it

    def _graph(self, layers: Callable[..., Tensor], *inputs: Tensor) -> Graph | None:
        """The recording for such inputs, made where there is none; None where there cannot be one."""
        assert self._graphs is not None, "no size is captured without them"
        key = (self._graphs.setting(), *((x.shape, x.dtype) for x in inputs))
        graph = self._recordings.get(key)
        if graph is None:
            try:
                graph = self._recordings[key] = self._graphs.capture(layers, *inputs)
            except CaptureError as error:
                self._give_up(str(error))
        return graph

    def _give_up(self, reason: str) -> None:
        logger.info("steps are not captured, and Python runs all layers: %s", reason)
        self.sizes = []

    # ------------------------------------------------------------------------------------------ padding

    def _size_for(self, num_rows: int) -> int | None:
        """The captured size to run so many rows with, if there is one that costs little more than they do."""
        index = bisect_left(self.sizes, num_rows)
        if self._graphs is None or index == len(self.sizes):
            return None
        size = self.sizes[index]
        return size if size == num_rows or size <= self._graphs.most_rows(num_rows) else None

    def _padded(self, step: _Step, size: int) -> _Step:
        """The step with as many rows of padding as it lacks to `size`."""
        rows = size - len(step.inputs[0])
        if rows == 0:
            return step
        batch, block_size = step.attention, self.attention.cache.block_size
        slots, tables = batch.slots, batch.block_tables
        padded = AttentionBatch(
            slots=torch.cat((slots, slots.new_full((rows,), self._scratch_block * block_size))),
            block_tables=torch.cat((tables, tables.new_full((rows, tables.shape[1]), self._scratch_block))),
            query_lens=[*batch.query_lens, *[1] * rows],
            context_lens=[*batch.context_lens, *[1] * rows],
        )
        return _Step(
            tuple(F.pad(each, (0, 0, 0, rows)) for each in step.inputs),
            F.pad(step.positions, (0, rows)),
            padded,
            None if step.is_long is None else F.pad(step.is_long, (0, rows)),
        )

    def _empty_step(self, device: torch.device) -> _Step:
        none = torch.empty(0, dtype=torch.int64, device=device)
        batch = AttentionBatch(none, none.view(0, 1), query_lens=[], context_lens=[])
        return _Step(self.model.merge(none), none.expand(self.model.position_rows, 0), batch, None)
