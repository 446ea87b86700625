"""The compiled kernels as a ctypes library, loaded once per process."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path
from time import perf_counter

import torch

from trifocal import envs
from trifocal.kernels.cpu.build import BuildError, InstructionSet, build, choose, cpu_features
from trifocal.log import get_logger

logger = get_logger(__name__)
_OPENMP = ("libgomp", "libomp", "libiomp5")


class AttentionArgs(ctypes.Structure):
    """`tri::Attention` in src/attention.cpp; fields are explained there."""

    _fields_ = (
        *((name, c_void_p) for name in ("q", "k", "v", "out", "keys", "values", "key_scales", "value_scales")),
        *((name, c_void_p) for name in ("slots", "tables", "query_lens", "context_lens")),
        *((name, c_int64) for name in ("q_stride", "k_stride", "v_stride", "num_seqs", "num_tokens", "table_stride")),
        *((name, c_int64) for name in ("block_size", "heads", "kv_heads", "head_dim")),
        ("scale", c_float),
        ("threads", c_int32),
    )


class SegmentsArgs(ctypes.Structure):
    """`tri::Segments` in src/segments.cpp; fields are explained there."""

    _fields_ = (
        *((name, c_void_p) for name in ("q", "k", "v", "out", "lengths")),
        *((name, c_int64) for name in ("q_stride", "k_stride", "v_stride", "count", "heads", "head_dim")),
        ("scale", c_float),
        ("threads", c_int32),
    )


_NORM = (c_void_p, c_int64, c_void_p, c_float, c_void_p, c_float, c_void_p, c_void_p, c_int64, c_int64, c_int32)
_SILU = (c_void_p, c_void_p, c_int64, c_int64, c_int32)
_ROTATE = (c_void_p, c_int64, c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_int32)
_SIGNATURES = {
    "linear_bf16": (c_void_p, c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_int32),
    **{f"linear_int8_{name}": (*(c_void_p,) * 5, c_int64, c_int64, c_int64, c_int32) for name in ("bf16", "f32")},
    "read": (c_void_p, c_int64, c_int32),
    "linear_int4": (*(c_void_p,) * 6, c_int64, c_int64, c_int64, c_int64, c_int32),
    **{f"rms_norm_{name}": _NORM for name in ("bf16", "f32")},
    **{f"silu_and_mul_{name}": _SILU for name in ("bf16", "f32")},
    **{f"rotate_{name}": _ROTATE for name in ("bf16", "f32")},
    **{f"attention_{name}": (c_void_p,) for name in ("bf16", "f32", "int8_bf16", "int8_f32")},
    **{f"segments_{name}": (c_void_p,) for name in ("bf16", "f32")},
}
SUFFIX = {torch.bfloat16: "bf16", torch.float32: "f32"}


class Library:
    """Functions of one compiled library, `tri_` left out of their names. Calls release the interpreter's lock."""

    def __init__(self, chosen: InstructionSet, path: Path) -> None:
        self.name = chosen.name
        _share_openmp()
        library = ctypes.CDLL(str(path))
        self.functions = {name: library[f"tri_{name}"] for name in _SIGNATURES}
        for name, argtypes in _SIGNATURES.items():
            self.functions[name].argtypes = argtypes
            self.functions[name].restype = None


def load() -> Library | None:
    """The kernels that `TRIFOCAL_CPU_KERNELS` asks for; None, said in the log once, where there are none."""
    return _load(envs.CPU_KERNELS.get())


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
            "no CPU kernels: %s. Torch computes alone: the same results, but decoding in bfloat16 and attention over "
            "long contexts take about twice as long",
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
