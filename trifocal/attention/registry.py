"""Attention backends by name; a platform names its default."""

from __future__ import annotations

from trifocal.attention.base import AttentionBackend
from trifocal.registry import Registry

ATTENTION: Registry[type[AttentionBackend]] = Registry(
    "attention backend",
    {
        "cpu": "trifocal.attention.cpu:CpuAttention",
        "reference": "trifocal.attention.reference:ReferenceAttention",
    },
)
