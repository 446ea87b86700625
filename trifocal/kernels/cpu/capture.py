"""The CPU's form of a CUDA graph: what Python did once for the layers of a step is done again by one call.

A step of a few tokens is two hundred kernels of which many take less time than Python takes to call them. But in all
steps with as many rows layers pass the same to kernels: sizes, weights, and, if activations lie where they lay before,
addresses. So the calls of one step are recorded, and made again from a list.
"""

from __future__ import annotations

import ctypes
from bisect import bisect_right
from collections.abc import Callable, Sequence
from ctypes import c_void_p
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from trifocal.kernels.cpu.library import Args, Call, Library
from trifocal.kernels.graphs import CaptureError

_EMPTY = {"empty", "new_empty", "empty_like"}
_VIEWS = {"view", "narrow", "reshape", "contiguous"}  # which may also be copies
_QUESTIONS = {"__get__", "__len__", "data_ptr", "dim", "is_contiguous", "numel", "size", "stride"}  # __get__: x.shape
_ALIGNMENT = 64


class CpuGraphs:
    """See `Graphs`: the calls of compiled kernels are noted and not made, so that nothing is computed or written."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._memory = torch.empty(0, dtype=torch.uint8)  # all tapes use the same: one is played at a time

    def capture(self, layers: Callable[..., Tensor], *inputs: Tensor) -> Tape:
        """See `Graphs.capture`. The largest step should come first: those after it fit into its memory."""
        with _Recorder(self._library) as recorder:
            output = layers(*inputs)
        if recorder.hindrance is not None:
            raise CaptureError(f"they call torch's {recorder.hindrance}, which is not a compiled kernel")
        if not all(x.is_contiguous() for x in (*inputs, output)):
            raise CaptureError("their input or output is not contiguous")
        tape = Tape(self._library, recorder, inputs, output, self._memory)
        self._memory = tape.memory
        return tape

    def setting(self) -> int:
        """Threads: calls carry their number."""
        return torch.get_num_threads()

    def most_rows(self, num_rows: int) -> int:
        """As many as fill the last group of rows that linear layers compute at once, which costs little.

        Fewer rows than one group have quicker ways of their own, and any row beyond the group costs more than Python.
        """
        at_once = self._library.rows_at_once
        return num_rows if num_rows <= at_once else -(-num_rows // at_once) * at_once


class _Product(Args):
    """Arguments of torch's product of float32 matrices, which is called in the place of a kernel."""

    _fields_ = (("x", c_void_p), ("y", c_void_p))
    weight: Tensor
    bias: Tensor | None

    def bind(self, at: Callable[[int, int, int], Tensor], rows: int) -> Callable[[], object]:
        """The call; `at` makes a matrix of the memory at an address."""
        out_features, in_features = self.weight.shape
        x, y = at(self.x, rows, in_features), at(self.y, rows, out_features)
        if self.bias is None:
            return partial(torch.mm, x, self.weight.t(), out=y)
        return partial(torch.addmm, self.bias, x, self.weight.t(), out=y)


class _Recorder(TorchFunctionMode):
    """Notes kernel calls, which are not made, and keeps all tensors that are: so an address stands for one of them.

    Products of float32 matrices are noted likewise. Other functions of torch that compute something are no kernel calls
    and cannot be made again: the last is the `hindrance`. They are seen as Python calls them (`TorchDispatchMode` would
    import sympy, a second and 70 MB).
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
        name = func.__name__
        if name == "linear" and not kwargs and (product := self._product(*args)) is not None:
            return product
        result = func(*args, **(kwargs or {}))
        if name in _EMPTY:
            self.made.append(result)
        elif not (name in _QUESTIONS or (name in _VIEWS and _is_view(result, args[0]))):
            self.hindrance = name
        return result

    def _product(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
        """Note `F.linear` of a matrix in float32; None: it is something else, whose result may depend on the call."""
        if x.dtype != torch.float32 or weight.dtype != torch.float32 or x.dim() != 2 or not x.is_contiguous():
            return None
        y = x.new_empty(len(x), len(weight))
        args = _Product(x.data_ptr(), y.data_ptr())
        args.weight, args.bias = weight, bias
        self.made.append(y)
        self.calls.append((None, args))
        return y


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
        self._parts = [
            part
            for is_kernel, calls in groupby(recorder.calls, lambda call: call[0] is not None)
            for part in (self._replayed(list(calls)) if is_kernel else map(self._product, calls))
        ]

    def replay(self, inputs: Sequence[Tensor]) -> Tensor:
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        for part in self._parts:
            part()
        return self._output

    def _replayed(self, calls: list[tuple[int | None, Args]]) -> list[Callable[[], object]]:
        """Calls of kernels as one call."""
        array = (Call * len(calls))(*(Call(address, ctypes.addressof(args)) for address, args in calls))
        return [partial(self._library.replay, array, len(calls))]

    def _product(self, call: tuple[int | None, Args]) -> Callable[[], object]:
        args = call[1]
        assert isinstance(args, _Product)
        return args.bind(self._matrix, len(self._inputs[0]))

    def _matrix(self, address: int, rows: int, columns: int) -> Tensor:
        first = address - self.memory.data_ptr()
        return self.memory[first : first + 4 * rows * columns].view(torch.float32).view(rows, columns)


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
