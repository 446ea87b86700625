"""The compiled kernels as a ctypes library, loaded once per process."""

from __future__ import annotations

import ctypes
import threading
from ctypes import byref, c_float, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from trifocal.config import envs
from trifocal.kernels.cpu.build import BuildError, InstructionSet, build, choose, cpu_features
from trifocal.log import get_logger

logger = get_logger(__name__)
_OPENMP = ("libgomp", "libomp", "libiomp5")


class Args(ctypes.Structure):
    """What a kernel takes: the struct of the same fields in its source, where they are explained."""


def _struct(name: str, pointers: str, sizes: str, floats: str = "") -> type[Args]:
    """Pointers first, then sizes, floats, and last the number of threads: as every kernel has them."""
    fields = [(field, kind) for names, kind in ((pointers, c_void_p), (sizes, c_int64), (floats, c_float))
              for field in names.split()]  # fmt: skip
    return type(name, (Args,), {"_fields_": (*fields, ("threads", c_int32))})


class AttentionStep(ctypes.Structure):
    """`tri::Step` in src/attention.cpp."""

    _fields_ = (
        *((name, c_void_p) for name in ("slots", "tables", "query_lens", "context_lens")),
        *((name, c_int64) for name in ("num_seqs", "num_tokens", "table_stride")),
    )


class Call(ctypes.Structure):
    """`tri::Call` in src/calls.cpp."""

    _fields_ = (("kernel", c_void_p), ("args", c_void_p))


_LINEAR = _struct("Linear", "x weight bias y", "m n k")
_INT8 = _struct("Int8", "x weight scale bias y", "m n k")
_INT4 = _struct("Int4", "x weight scale zero bias y", "m n k group")
_NORM = _struct("Norm", "x delta weight total y", "stride rows size", "scale eps")
_NORM_HEADS = _struct("NormHeads", "x first_weight other_weight y", "stride rows heads first size", "eps")
_SILU = _struct("Silu", "x y", "rows size")
_ROTATE = _struct("Rotate", "x cosines sines y", "stride rows heads half")
_SEGMENTS = _struct("Segments", "q k v out lengths", "q_stride k_stride v_stride count heads head_dim", "scale")
_ATTENTION = _struct(
    "Attention",
    "step q k v out keys values key_scales value_scales",
    "q_stride k_stride v_stride block_size heads kv_heads head_dim window",
    "scale",
)
_CHOOSE = _struct("Choose", "logits scale floor top_k top_p noise tokens largest", "stride rows vocab")
_LIKELY = _struct(
    "Likely", "logits rows chosen wanted largest own values totals ranks ids", "stride count vocab width", "scale"
)
_KERNELS: dict[str, type[Args]] = {
    "choose": _CHOOSE,
    "likely": _LIKELY,
    "linear_bf16": _LINEAR,
    "linear_int4": _INT4,
    "linear_int4_int8": _INT4,
    **{f"linear_int8_{name}": _INT8 for name in ("bf16", "f32")},
    **{f"rms_norm_{name}": _NORM for name in ("bf16", "f32")},
    **{f"norm_heads_{name}": _NORM_HEADS for name in ("bf16", "f32")},
    **{f"silu_and_mul_{name}": _SILU for name in ("bf16", "f32")},
    **{f"rotate_{name}": _ROTATE for name in ("bf16", "f32")},
    **{f"attention_{name}": _ATTENTION for name in ("bf16", "f32", "int8_bf16", "int8_f32")},
    **{f"segments_{name}": _SEGMENTS for name in ("bf16", "f32")},
}
_TILE_KERNELS: dict[str, type[Args]] = {  # which the instruction set with tiles has besides
    "linear_gated_bf16": _LINEAR,
    **{f"linear_int8_gated_{name}": _INT8 for name in ("bf16", "f32")},
}
SUFFIX = {torch.bfloat16: "bf16", torch.float32: "f32"}


class LayoutError(Exception):
    """Python and C++ disagree about a struct: one of them was changed alone, and calls would read the wrong bytes."""


class Kernel:
    """One compiled function. A call takes its struct's fields in order and releases the interpreter's lock.

    While its thread records, calls are noted and not made.
    """

    def __init__(self, function: Any, args: type[Args], recording: Recording) -> None:
        function.argtypes, function.restype = (c_void_p,), None
        self.function, self.address = function, ctypes.cast(function, c_void_p).value
        self._args, self._recording = args, recording

    def __call__(self, *values: float | None) -> None:
        args = self._args(*values)
        if self._recording.calls is None:
            self.function(byref(args))
        else:
            self._recording.calls.append((self.address, args))


class Recording(threading.local):
    """Where this thread notes calls instead of making them, if it does."""

    calls: list[tuple[int | None, Args]] | None = None


class Library:
    """The kernels of one compiled library by name, `tri_` left out."""

    def __init__(self, chosen: InstructionSet, path: Path) -> None:
        """Raises `LayoutError` where a struct here is not as large as the library's."""
        self.name = chosen.name
        self.recording = Recording()
        _share_openmp()
        library = ctypes.CDLL(str(path))
        kernels = _KERNELS | _TILE_KERNELS if chosen.has_tiles else _KERNELS
        layouts: dict[str, type[ctypes.Structure]] = {**kernels, "step": AttentionStep, "call": Call}
        for name, layout in layouts.items():
            _check_size(name, layout, library[f"tri_{name}_bytes"])
        self.kernels = {name: Kernel(library[f"tri_{name}"], args, self.recording) for name, args in kernels.items()}
        library["tri_rows_at_once"].restype = c_int64
        self.rows_at_once: int = library["tri_rows_at_once"]()  # by linear layers
        self.read = library["tri_read"]  # (address, bytes, threads)
        self.read.argtypes = (c_void_p, c_int64, c_int32)
        self.replay = library["tri_replay"]  # (array of Call, count)
        self.replay.argtypes, self.replay.restype = (c_void_p, c_int64), None


def _check_size(name: str, layout: type[ctypes.Structure], ask: Any) -> None:
    ask.argtypes, ask.restype = (), c_int64
    ours, theirs = ctypes.sizeof(layout), ask()
    if ours != theirs:
        raise LayoutError(
            f"tri_{name}: its struct has {theirs} bytes in kernels/cpu/src, {ours} in kernels/cpu/library.py "
            f"({layout.__name__}): give both the same fields"
        )


def load(wanted: str | None = None) -> Library | None:
    """The kernels that `wanted`, or else `TRIFOCAL_CPU_KERNELS`, asks for; None, told in the log once, without any."""
    return _load(wanted or envs.CPU_KERNELS.get())


@cache
def _load(wanted: str) -> Library | None:
    if wanted == "0":
        return None
    started = perf_counter()
    try:
        chosen = choose(wanted, cpu_features())
        library = Library(chosen, build(chosen))
    except (BuildError, OSError) as error:
        logger.warning(
            "no CPU kernels: %s. Torch computes instead, with the same results; decoding in bfloat16 and attention "
            "over long contexts take about twice as long",
            error,
        )
        return None
    logger.info("CPU kernels: %s, ready in %.1f s", library.name, perf_counter() - started)
    return library


def _share_openmp() -> None:
    """Make symbols of torch's OpenMP runtime visible: kernels then run on torch's threads instead of on their own."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    files = {Path("/" + line.partition("/")[2]) for line in lines if "/" in line}
    runtimes = [file for file in files if file.name.startswith(_OPENMP)]
    if not runtimes:
        raise BuildError("this torch was built without OpenMP")
    # Other packages may have brought one of their own (sentencepiece does).
    own = [file for file in runtimes if file.is_relative_to(Path(torch.__file__).parent)]
    ctypes.CDLL(str((own or runtimes)[0]), mode=ctypes.RTLD_GLOBAL)
