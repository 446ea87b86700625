"""Attention backends by name; a platform names its default."""

from __future__ import annotations

from trifocal.attention.base import AttentionBackend, KVCacheSpec
from trifocal.log import get_logger
from trifocal.registry import Registry

logger = get_logger(__name__)
_ANYWHERE = "reference"
ATTENTION: Registry[type[AttentionBackend]] = Registry(
    "attention backend",
    {
        "cpu": "trifocal.attention.cpu:CpuAttention",
        "reference": "trifocal.attention.reference:ReferenceAttention",
    },
)


def choose_backend(wanted: str, spec: KVCacheSpec) -> type[AttentionBackend]:
    """The backend of this name, or the reference, which serves everything: the log says what speaks against the first.

    Raises `ConfigError` for a name that is unknown.
    """
    backend = ATTENTION.get(wanted)
    reasons = backend.validate_configuration(spec)
    if not reasons:
        return backend
    logger.info("attention backend %s is not used: %s; %s serves instead", wanted, "; ".join(reasons), _ANYWHERE)
    return ATTENTION.get(_ANYWHERE)
