"""`multi_modal_data` of `LLM.generate`, as in vLLM: items by modality, each kind one item or several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trifocal.errors import RequestError
from trifocal.media.media import MediaRef
from trifocal.media.modalities import MODALITIES
from trifocal.media.reader import READERS


def check_names(data: object) -> None:
    """Raise `RequestError` for what is no dict of modalities."""
    if not isinstance(data, Mapping):
        forms = " or ".join(f'{{"{name}": …}}' for name in MODALITIES)
        raise RequestError(
            f"multi_modal_data must be a dict like {forms}, got {type(data).__name__}", param="multi_modal_data"
        )
    unknown = set(data) - set(MODALITIES)
    if unknown:
        raise RequestError(
            f"multi_modal_data has unknown modality {min(map(str, unknown))!r}; known: {', '.join(MODALITIES)}",
            param="multi_modal_data",
        )


def media_refs(data: Mapping[str, Any]) -> list[MediaRef]:
    """All items, kind by kind. Raises `RequestError`."""
    check_names(data)
    return [
        MediaRef(modality, item, f"multi_modal_data['{modality}'][{index}]")
        for modality in MODALITIES
        for index, item in enumerate(READERS.get(modality).items_of(data.get(modality)))
    ]
