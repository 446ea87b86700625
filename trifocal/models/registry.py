"""Which family serves which architecture; nothing of a family is imported before it is asked for.

A family has two faces: a model (torch, in the worker) and a processor (no torch, in the server process).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trifocal.registry import Registry
from trifocal.types import ConfigError

if TYPE_CHECKING:
    from trifocal.models.base import Model
    from trifocal.multimodal.processor import Processor

MODELS: Registry[type[Model]] = Registry(
    "architecture",
    {
        "InternVLChatModel": "trifocal.models.internvl.model:InternVL",
        "InternVLForConditionalGeneration": "trifocal.models.internvl.model:InternVL",
        "MiniCPMV": "trifocal.models.minicpmv.model:MiniCPMV",
        "Qwen2_5_VLForConditionalGeneration": "trifocal.models.qwen2_5_vl.model:Qwen2_5_VL",
    },
)
PROCESSORS: Registry[type[Processor]] = Registry(
    "architecture",
    {
        "InternVLChatModel": "trifocal.models.internvl.processor:InternVLProcessor",
        "InternVLForConditionalGeneration": "trifocal.models.internvl.processor:InternVLProcessor",
        "MiniCPMV": "trifocal.models.minicpmv.processor:MiniCPMVProcessor",
        "Qwen2_5_VLForConditionalGeneration": "trifocal.models.qwen2_5_vl.processor:Qwen2_5_VLProcessor",
    },
)


def check_architecture(architecture: str) -> None:
    """Raise `ConfigError` for a model that nobody here can run, before any weight is read."""
    if architecture not in MODELS:
        raise ConfigError(
            f"config.json: architecture {architecture!r} is not supported; supported: {', '.join(sorted(MODELS))}"
        )
