"""Every environment variable that Trifocal reads: its type, default and meaning.

A variable `NAME` is read as `TRIFOCAL_NAME`, then `VLLM_NAME`: exports made for vLLM keep working.
Variables are read when the parts of the configuration are made (`arguments.from_env`), and their values are handed down
from there, to the engine's process too. Read before there is a configuration, or beside it, are LOGGING_LEVEL (`log`),
PLUGINS (`config.devices`), CACHE_ROOT (`cache_folder`), API_KEY (`cli.serve`) and CPU_KERNELS where who loads kernels
names none (`kernels.cpu.library`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Generic, TypeVar

from trifocal.errors import ConfigError

T = TypeVar("T")
_PREFIXES = ("TRIFOCAL_", "VLLM_")
_MOST_GIB = 1 << 30  # far beyond any machine
_NEAR = 0.9  # likeness from which a name of vLLM's is taken for a slip of one of ours: it may be a variable of its own


def _bool(text: str) -> bool:
    lowered = text.strip().lower()
    if lowered in ("1", "true", "yes", "on"):
        return True
    if lowered in ("0", "false", "no", "off", ""):
        return False
    raise ValueError("expected 0 or 1")


def _positive_float(text: str) -> float:
    with suppress(ValueError):
        value = float(text)
        if 0 < value < float("inf"):
            return value
    raise ValueError("expected a number above 0")


def _gib(text: str) -> float:
    value = _positive_float(text)
    if value > _MOST_GIB:
        raise ValueError(f"expected at most {_MOST_GIB}")
    return value


def _integer_from(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        with suppress(ValueError):
            if int(text) >= least:
                return int(text)
        raise ValueError(f"expected an integer of at least {least}")

    return parse


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
        raise ValueError(
            "0 asks for vLLM's old engine, and Trifocal has one engine; remove the variable or set it to 1"
        )
    return True


@dataclass(frozen=True)
class Env(Generic[T]):
    """One variable; `get()` parses it and raises `ConfigError` naming the variable that was wrong."""

    name: str
    parse: Callable[[str], T]
    default: T
    meaning: str

    def get(self) -> T:
        variable = self.variable
        if variable is None:
            return self.default
        text = os.environ[variable]
        try:
            return self.parse(text)
        except ValueError as error:
            raise ConfigError(f"environment variable {variable}={text!r:.200}: {error}") from None

    @property
    def variable(self) -> str | None:
        """The name of the variable in force, with its prefix; None if neither is set."""
        names = (f"{prefix}{self.name}" for prefix in _PREFIXES)
        return next((name for name in names if name in os.environ), None)


IMAGE_FETCH_TIMEOUT = Env("IMAGE_FETCH_TIMEOUT", _positive_float, 5.0, "seconds for fetching one image")
VIDEO_FETCH_TIMEOUT = Env("VIDEO_FETCH_TIMEOUT", _positive_float, 30.0, "seconds for fetching one video")
MEDIA_URL_ALLOW_REDIRECTS = Env(
    "MEDIA_URL_ALLOW_REDIRECTS", _bool, True, "0 refuses media URLs that redirect; 1 follows up to 5, checking each"
)
ENGINE_ITERATION_TIMEOUT_S = Env(
    "ENGINE_ITERATION_TIMEOUT_S",
    _positive_float,
    600.0,
    "seconds after which the engine is replaced if it makes no step while there is work, or is stopped by a signal "
    "while it starts",
)
ENGINE_READY_TIMEOUT_S = Env(
    "ENGINE_READY_TIMEOUT_S",
    _positive_float,
    600.0,
    "seconds that an engine may take to start; after them it is replaced",
)
ENGINE_MAX_RESTARTS = Env(
    "ENGINE_MAX_RESTARTS",
    _integer_from(0),
    5,
    "most restarts of the engine in a row without a token in between; then the server gives up and exits",
)
ENGINE_RESTART_BACKOFF_S = Env(
    "ENGINE_RESTART_BACKOFF_S",
    _positive_float,
    1.0,
    "seconds to wait before the second restart in a row; doubled for each further one, up to 30",
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
PLUGINS: Env[list[str] | None] = Env(
    "PLUGINS",
    _names,
    None,
    "comma list of platform plug-ins to load; a missing one is a warning; unset: all that are installed",
)
WORKER_MULTIPROC_METHOD = Env(
    "WORKER_MULTIPROC_METHOD",
    _one_of("spawn", "fork"),
    "spawn",
    "accepted for compatibility with vLLM, without effect: the worker runs in the engine process",
)
USE_V1 = Env("USE_V1", _only_v1, True, "accepted for compatibility with vLLM; 0 is refused: there is one engine")
CPU_KVCACHE_SPACE: Env[float | None] = Env(
    "CPU_KVCACHE_SPACE", _gib, None, "GiB of KV cache on a CPU; unset: what memory allows, at most 4 GiB"
)
CPU_KERNELS = Env(
    "CPU_KERNELS",
    _one_of("1", "0", "avx2", "avx512", "avx512_bf16", "amx"),
    "1",
    "kernels on a CPU: 1 uses the best instruction set of the processor, a name uses that one, 0 uses torch alone",
)
CACHE_ROOT: Env[str | None] = Env(
    "CACHE_ROOT",
    str,
    None,
    "folder for files that are made once and kept, e.g. compiled kernels; unset: ~/.cache/trifocal",
)
PACKED_CACHE = Env(
    "PACKED_CACHE",
    _bool,
    False,
    "1 keeps a copy of the weights in the cache folder, laid out for the CPU's kernels (as large as in memory); the "
    "next start of the same model in the same format reads that copy",
)
LOGGING_LEVEL = Env(
    "LOGGING_LEVEL", _one_of("debug", "info", "warning", "error"), "info", "debug, info, warning or error"
)
API_KEY: Env[str | None] = Env("API_KEY", str, None, "key that requests must bring if --api-key is not given")
MEDIA_THREADS: Env[int | None] = Env(
    "MEDIA_LOADING_THREAD_COUNT",
    _integer_from(1),
    None,
    "threads that decode and preprocess media; unset: one per core, at most 8",
)

ALL: tuple[Env[object], ...] = tuple(value for value in list(globals().values()) if isinstance(value, Env))
_told: set[str] = set()


def check() -> None:
    """Parse every variable that is set, so that a bad value shows at start. Raises `ConfigError` naming it."""
    for env in ALL:
        env.get()


def notes() -> list[str]:
    """A line for each set variable that is not read, as far as this process has not told it yet.

    Unknown `TRIFOCAL_` names are named one by one. vLLM has hundreds of variables: those are one line together, unless
    a name is nearly one of ours.
    """
    known = {f"{prefix}{env.name}" for env in ALL for prefix in _PREFIXES}
    unread = sorted(name for name in os.environ if name.startswith(_PREFIXES) and name not in known | _told)
    _told.update(unread)
    lines, others = [], []
    for name in unread:
        prefix = next(prefix for prefix in _PREFIXES if name.startswith(prefix))
        is_ours = prefix == _PREFIXES[0]
        near = get_close_matches(name.removeprefix(prefix), [env.name for env in ALL], 1, 0.6 if is_ours else _NEAR)
        if near or is_ours:
            hint = f"; did you mean {prefix}{near[0]}?" if near else ""
            lines.append(f"environment variable {name} is unknown{hint}")
        else:
            others.append(name)
    if others:
        lines.append(f"environment variables without effect here: {', '.join(others)}")
    return lines


def cache_folder(kind: str) -> Path:
    """Where things of one kind are kept that are made once and can be made again; it need not exist yet."""
    root = CACHE_ROOT.get()
    if root:
        return Path(root) / kind
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trifocal" / kind
