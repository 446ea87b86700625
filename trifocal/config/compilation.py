"""`--compilation-config`: which steps are captured, to be replayed. Other keys are torch.compile's, not used here."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from trifocal.config.vllm_options import COMPILATION_KEYS_WITHOUT_EFFECT
from trifocal.errors import ArgumentError
from trifocal.log import get_logger

logger = get_logger(__name__)
DEFAULT_CAPTURE_SIZES = tuple(range(1, 33))  # beyond, Python's part of a step is small
_MODES: dict[Any, bool] = {  # vLLM's names and numbers: whether anything is captured
    "NONE": False,
    "PIECEWISE": True,
    "FULL": True,
    "FULL_DECODE_ONLY": True,
    "FULL_AND_PIECEWISE": True,
    0: False,
    1: True,
    2: True,
}
_USED = ("cudagraph_capture_sizes", "max_cudagraph_capture_size", "cudagraph_mode", "use_cudagraph")


def capture_sizes(config: Mapping[str, Any]) -> tuple[int, ...]:
    """Tokens of the steps to capture. Raises `ConfigError` naming the key; keys without effect are logged."""
    _check_keys(config)
    sizes = config.get("cudagraph_capture_sizes")
    if sizes is None:
        sizes = DEFAULT_CAPTURE_SIZES
    if not isinstance(sizes, list | tuple) or not all(type(size) is int and size > 0 for size in sizes):
        raise _wrong("cudagraph_capture_sizes", "a list of integers above 0", sizes)
    most = config.get("max_cudagraph_capture_size")
    if most is not None and (type(most) is not int or most < 0):
        raise _wrong("max_cudagraph_capture_size", "an integer of at least 0", most)
    return tuple(size for size in sizes if most is None or size <= most) if _is_on(config) else ()


def _is_on(config: Mapping[str, Any]) -> bool:
    mode, switch = config.get("cudagraph_mode"), config.get("use_cudagraph")
    name = mode.upper() if isinstance(mode, str) else mode
    if mode is not None and (type(mode) not in (str, int) or name not in _MODES):
        raise _wrong("cudagraph_mode", f"one of {', '.join(str(each) for each in _MODES)}", mode)
    if not isinstance(switch, bool | None):
        raise _wrong("use_cudagraph", "true or false", switch)
    return switch is not False and (mode is None or _MODES[name])


def _check_keys(config: Mapping[str, Any]) -> None:
    for key in config:
        if key not in _USED and key not in COMPILATION_KEYS_WITHOUT_EFFECT:
            near = get_close_matches(key, [*_USED, *COMPILATION_KEYS_WITHOUT_EFFECT], n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(_USED)}"
            raise ArgumentError("{compilation_config}: unknown key {!r}; {}", key, hint)
    unused = [key for key in config if key not in _USED]
    if unused:
        logger.warning(
            "compilation_config: these keys have no effect, as there is no torch.compile: %s", ", ".join(unused)
        )


def _wrong(key: str, wanted: str, got: Any) -> ArgumentError:
    return ArgumentError("{compilation_config}: {} must be {}, got {!r}", key, wanted, got)
