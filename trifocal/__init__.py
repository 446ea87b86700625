"""Trifocal: a multimodal inference engine. `from trifocal import LLM, SamplingParams` is all that offline use needs.

Nothing is imported until it is asked for: `trifocal serve --help` must not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trifocal.config.engine import EngineArgs
    from trifocal.llm import LLM
    from trifocal.sampling_params import SamplingParams
    from trifocal.types import CompletionOutput, RequestOutput

__version__ = "0.1.0"
__all__ = ["LLM", "CompletionOutput", "EngineArgs", "RequestOutput", "SamplingParams", "__version__"]

_HOME = {
    "LLM": "trifocal.llm",
    "EngineArgs": "trifocal.config.engine",
    "SamplingParams": "trifocal.sampling_params",
    "RequestOutput": "trifocal.types",
    "CompletionOutput": "trifocal.types",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
