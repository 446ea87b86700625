"""Captured steps: what Python did once for the layers of a step is done again by one call, as by a CUDA graph.

A step of a few tokens is two hundred kernels of which many take less time than Python takes to call them. But in all
steps with as many rows layers pass the same to kernels: sizes, weights, and, if activations lie where they lay before,
addresses. So the calls of one step are recorded, and made again from a list.
"""

from __future__ import annotations

import ctypes
from bisect import bisect_right
from collections.abc import Callable, Collection, Sequence
from ctypes import c_void_p
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from trifocal.kernels.cpu.library import Args, Call, Library
from trifocal.log import get_logger

logger = get_logger(__name__)
_EMPTY = {"empty", "new_empty", "empty_like"}
_VIEWS = {"view", "narrow", "reshape", "contiguous"}  # which may also be copies
_QUESTIONS = {"__get__", "__len__", "data_ptr", "dim", "is_contiguous", "numel", "size", "stride"}  # __get__: x.shape
_ALIGNMENT = 64

Layers = Callable[..., Tensor]


class CapturedSteps:
    """Runs `layers` for steps of `sizes` rows: from a recording, which is made once for each number of rows."""

    def __init__(self, library: Library, sizes: Collection[int]) -> None:
        self._library = library
        self.sizes = frozenset(sizes)
        self._tapes: dict[tuple[Any, ...], Tape] = {}
        self._memory = torch.empty(0, dtype=torch.uint8)  # all recordings use the same: one is played at a time
        self.num_replayed = 0

    def __call__(self, layers: Layers, *inputs: Tensor) -> Tensor:
        """`layers(*inputs)`; all have a step's rows first. The result holds until the next call.

        Layers must depend on nothing else that changes but through memory whose address does not.
        """
        tape = self.record(layers, *inputs)
        if tape is None:
            return layers(*inputs)
        self.num_replayed += 1
        return tape.play(inputs)

    def record(self, layers: Layers, *inputs: Tensor) -> Tape | None:
        """The recording for such inputs, made without computing anything; None where there cannot be one."""
        if len(inputs[0]) not in self.sizes:
            return None
        key = (torch.get_num_threads(), *((x.shape, x.dtype) for x in inputs))
        tape = self._tapes.get(key)
        if tape is not None:
            return tape
        with _Recorder(self._library) as recorder:
            output = layers(*inputs)
        if recorder.hindrance is not None or not all(x.is_contiguous() for x in (*inputs, output)):
            logger.info("steps are not replayed: %s is no kernel of ours", recorder.hindrance or "a layout")
            self.sizes = frozenset()
            return None
        tape = self._tapes[key] = Tape(self._library, recorder, inputs, output, self._memory)
        self._memory = tape.memory
        return tape


class _Recorder(TorchFunctionMode):
    """Notes kernel calls, which are not made, and keeps all tensors that are: so an address stands for one of them.

    Functions of torch that compute something are no kernel calls and cannot be made again: the last is the `hindrance`.
    They are seen as Python calls them (`TorchDispatchMode` would import sympy, a second and 70 MB).
    """

    def __init__(self, library: Library) -> None:
        super().__init__()
        self._recording = library.recording
        self.calls: list[tuple[int | None, Args]] = []
        self.made: list[Tensor] = []
        self.hindrance: str | None = None

    def __enter__(self) -> _Recorder:
        self._recording.calls = self.calls
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        self._recording.calls = None
        super().__exit__(*exception)  # type: ignore[no-untyped-call]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.__name__
        if name in _EMPTY:
            self.made.append(result)
        elif not (name in _QUESTIONS or (name in _VIEWS and _is_view(result, args[0]))):
            self.hindrance = name
        return result


def _is_view(result: Tensor, of: Tensor) -> bool:
    return result.untyped_storage().data_ptr() == of.untyped_storage().data_ptr()


class Tape:
    """Recorded calls, with the activations moved into `memory`, or into more where that is too small.

    Tensors that never live together share a place in it.
    """

    def __init__(
        self, library: Library, recorder: _Recorder, inputs: Sequence[Tensor], output: Tensor, memory: Tensor
    ) -> None:
        self._library = library
        self._args = [args for _, args in recorder.calls]
        tensors = sorted((*inputs, *recorder.made), key=Tensor.data_ptr)
        uses = _uses(self._args, tensors)
        ends = [max((call for call, *_ in used), default=-1) for used in uses]
        begins = [min((call for call, *_ in used), default=-1) for used in uses]
        for index, tensor in enumerate(tensors):
            begins[index] = -1 if any(tensor is x for x in inputs) else begins[index]
            ends[index] = len(self._args) if tensor.data_ptr() == output.data_ptr() else ends[index]
        offsets, total = _share([tensor.nbytes for tensor in tensors], begins, ends)
        self.memory = memory if len(memory) >= total else torch.empty(total, dtype=torch.uint8)
        for used, offset in zip(uses, offsets, strict=True):
            for call, field, inside in used:
                setattr(self._args[call], field, self.memory.data_ptr() + offset + inside)
        moved = {
            tensor.data_ptr(): self.memory[offset:][: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            for tensor, offset in zip(tensors, offsets, strict=True)
        }
        self._inputs = [moved[x.data_ptr()] for x in inputs]
        self._output = moved[output.data_ptr()].view(output.shape)
        calls = [Call(address, ctypes.addressof(args)) for address, args in recorder.calls]
        self._calls = (Call * len(calls))(*calls)

    def play(self, inputs: Sequence[Tensor]) -> Tensor:
        """Make the calls."""
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        self._library.replay(self._calls, len(self._calls))
        return self._output


def _uses(calls: Sequence[Args], tensors: Sequence[Tensor]) -> list[list[tuple[int, str, int]]]:
    """Where the addresses of each tensor occur: number of the call, field, bytes from the tensor's beginning."""
    starts = [tensor.data_ptr() for tensor in tensors]
    uses: list[list[tuple[int, str, int]]] = [[] for _ in tensors]
    for number, args in enumerate(calls):
        for field, kind, *_ in args._fields_:
            address: int = (getattr(args, field) if kind is c_void_p else None) or 0
            index = bisect_right(starts, address) - 1
            if index >= 0 and address - starts[index] < tensors[index].nbytes:
                uses[index].append((number, field, address - starts[index]))
    return uses


def _share(sizes: Sequence[int], begins: Sequence[int], ends: Sequence[int]) -> tuple[list[int], int]:
    """Offsets for tensors that are needed from call `begins` to call `ends` (both included), and bytes in all."""
    offsets, total = [0] * len(sizes), 0
    places: list[tuple[int, int, int]] = []  # offset, bytes, the last call that needs it
    for index in sorted(range(len(sizes)), key=begins.__getitem__):
        size = -(-sizes[index] // _ALIGNMENT) * _ALIGNMENT
        free = [place for place in places if place[2] < begins[index] and place[1] >= size]
        if free:
            place = min(free, key=lambda place: place[1])
            places.remove(place)
        else:
            place = (total, size, 0)
            total += size
        offsets[index] = place[0]
        places.append((place[0], place[1], ends[index]))
    return offsets, total
