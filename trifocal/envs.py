"""Every environment variable that Trifocal reads: its type, default and meaning.

A variable `NAME` is read as `TRIFOCAL_NAME`, then `VLLM_NAME`: whoever comes from vLLM keeps their exports.
Values are read when asked for, not at import, so a test or a parent process may set them late.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from trifocal.errors import ConfigError

T = TypeVar("T")


def _bool(text: str) -> bool:
    lowered = text.strip().lower()
    if lowered in ("1", "true", "yes", "on"):
        return True
    if lowered in ("0", "false", "no", "off", ""):
        return False
    raise ValueError("expected 0 or 1")


def _positive_float(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError("expected a positive number")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError("expected 0 or more")
    return value


def _names(text: str) -> list[str] | None:
    return [name.strip() for name in text.split(",") if name.strip()]


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in choices:
            raise ValueError(f"expected one of {', '.join(choices)}")
        return text.lower()

    return parse


def _only_v1(text: str) -> bool:
    if not _bool(text):
        raise ValueError("0 asks for vLLM's old engine; Trifocal has one engine, remove the variable or set it to 1")
    return True


@dataclass(frozen=True)
class Env(Generic[T]):
    """One variable; `get()` parses it and raises `ConfigError` naming the variable that was wrong."""

    name: str
    parse: Callable[[str], T]
    default: T
    meaning: str

    def get(self) -> T:
        """The value in force now."""
        for variable in (f"TRIFOCAL_{self.name}", f"VLLM_{self.name}"):
            text = os.environ.get(variable)
            if text is not None:
                try:
                    return self.parse(text)
                except ValueError as error:
                    raise ConfigError(f"environment variable {variable}={text!r}: {error}") from None
        return self.default


IMAGE_FETCH_TIMEOUT = Env("IMAGE_FETCH_TIMEOUT", _positive_float, 5.0, "seconds for fetching one image")
VIDEO_FETCH_TIMEOUT = Env("VIDEO_FETCH_TIMEOUT", _positive_float, 30.0, "seconds for fetching one video")
MEDIA_URL_ALLOW_REDIRECTS = Env(
    "MEDIA_URL_ALLOW_REDIRECTS", _bool, True, "0 refuses media URLs that redirect; 1 follows up to 5, checking each"
)
ENGINE_ITERATION_TIMEOUT_S = Env(
    "ENGINE_ITERATION_TIMEOUT_S",
    _positive_float,
    600.0,
    "seconds without an engine step while there is work, or stopped by a signal while it starts, after which the "
    "engine is replaced",
)
ENGINE_READY_TIMEOUT_S = Env(
    "ENGINE_READY_TIMEOUT_S", _positive_float, 600.0, "seconds that an engine may take to start; then it is replaced"
)
ENGINE_MAX_RESTARTS = Env(
    "ENGINE_MAX_RESTARTS",
    _count,
    5,
    "restarts of the engine in a row, without a token in between, after which the server gives up and exits",
)
ENGINE_RESTART_BACKOFF_S = Env(
    "ENGINE_RESTART_BACKOFF_S",
    _positive_float,
    1.0,
    "seconds of waiting before the second restart in a row; doubles with each further one, up to 30",
)
ALLOW_FAULT_INJECTION = Env("ALLOW_FAULT_INJECTION", _bool, False, "1 allows FAULT_INJECT; never in production")
FAULT_INJECT: Env[str | None] = Env(
    "FAULT_INJECT",
    str,
    None,
    "test aid, KIND:TEXT[@POSITION]: the engine's step on a request whose id contains TEXT, from that position on, "
    "does KIND: exit, segv, raise or hang",
)
ALLOW_LONG_MAX_MODEL_LEN = Env(
    "ALLOW_LONG_MAX_MODEL_LEN", _bool, False, "1 allows a --max-model-len above what the checkpoint says"
)
PLUGINS: Env[list[str] | None] = Env("PLUGINS", _names, None, "comma list of platform plug-ins to load; unset: all")
WORKER_MULTIPROC_METHOD = Env(
    "WORKER_MULTIPROC_METHOD",
    _one_of("spawn", "fork"),
    "spawn",
    "accepted for vLLM's sake and unused: the worker lives in the engine's process",
)
USE_V1 = Env("USE_V1", _only_v1, True, "accepted for vLLM's sake; 0 is refused: there is one engine")
CPU_KVCACHE_SPACE: Env[float | None] = Env(
    "CPU_KVCACHE_SPACE", _positive_float, None, "GiB of KV cache on a CPU; unset: measured, at most 4 GiB"
)
CPU_KERNELS = Env(
    "CPU_KERNELS",
    _one_of("1", "0", "avx2", "avx512", "avx512_bf16", "amx"),
    "1",
    "0: compute on a CPU with torch alone; an instruction set: use kernels for this one; 1: for the best one there is",
)
CACHE_ROOT: Env[str | None] = Env(
    "CACHE_ROOT", str, None, "folder for what is made once, e.g. compiled kernels; unset: ~/.cache/trifocal"
)
PACKED_CACHE = Env(
    "PACKED_CACHE",
    _bool,
    False,
    "1 keeps weights as a CPU's kernels read them in the cache folder (as large as in memory): the next start of the "
    "same model in the same format reads these instead of making them",
)
LOGGING_LEVEL = Env(
    "LOGGING_LEVEL", _one_of("debug", "info", "warning", "error"), "info", "debug, info, warning or error"
)
API_KEY: Env[str | None] = Env("API_KEY", str, None, "key that requests must bring, where --api-key names none")
MEDIA_THREADS: Env[int | None] = Env(
    "MEDIA_LOADING_THREAD_COUNT", int, None, "threads that decode and preprocess media; unset: one per core, at most 8"
)

ALL: tuple[Env[object], ...] = tuple(value for value in list(globals().values()) if isinstance(value, Env))


def cache_folder(kind: str) -> Path:
    """Where things of one kind are kept that are made once and can be made again; it need not exist yet."""
    root = CACHE_ROOT.get()
    if root:
        return Path(root) / kind
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trifocal" / kind
