"""Python objects given as media: which of them are one item, which are several, and what else would have been right."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import PIL.Image

from trifocal.errors import RequestError
from trifocal.media.arrays import is_array, num_axes
from trifocal.media.decode.image import refusal
from trifocal.media.modalities import MODALITIES
from trifocal.types import Modality

_MAX_SHOWN = 128


def images_of(value: Any) -> list[Any]:
    """`multi_modal_data["image"]` as a list of pictures: a list is several, and so is an array of four axes."""
    if value is None:
        return []
    if isinstance(value, list | tuple) or num_axes(value) == 4:
        return list(value)
    return [value]


def videos_of(value: Any) -> list[Any]:
    """`multi_modal_data["video"]` as a list of clips. Raises `RequestError`.

    As in vLLM a list of frames (PIL images, or arrays of up to three axes) is one clip; a list of anything else (arrays
    of four axes, lists, paths, bytes, pairs of frames and metadata) is several, and so is an array of five axes.
    """
    if value is None:
        return []
    if num_axes(value) == 5:
        return list(value)
    if not isinstance(value, list | tuple) or is_with_metadata(value):
        return [value]
    are_frames = {isinstance(item, PIL.Image.Image) or 0 <= num_axes(item) <= 3 for item in value}
    if len(are_frames) > 1:
        raise RequestError(
            "multi_modal_data['video'] mixes frames (pictures, arrays of up to three axes) and whole clips: give the "
            "frames of a clip in a list of their own",
            param="multi_modal_data",
        )
    return [value] if are_frames == {True} else list(value)


def is_with_metadata(value: Any) -> bool:
    """Whether `value` is a pair of frames and what is known of them, as vLLM passes clips."""
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], Mapping)


def as_url(source: Any, where: str) -> Any:
    """`source`, or the file: URL of a path, as a text without a scheme is. Raises `RequestError` if it is no file's."""
    if isinstance(source, Path) or (isinstance(source, str) and not _has_scheme(source)):
        path = _file(source) or (_file(source.strip()) if isinstance(source, str) else None)  # a line read from a file
        if path is None:
            shown = str(source)
            shown = shown if len(shown) <= _MAX_SHOWN else f"{shown[:_MAX_SHOWN]}…"
            raise refusal(where, f"{shown!r} is neither a URL nor the path of a file")
        return path.as_uri()
    if is_with_metadata(source):
        return as_url(source[0], where), source[1]
    if isinstance(source, list | tuple):
        return [as_url(item, f"{where}[{index}]") for index, item in enumerate(source)]
    return source


def wrong_object(source: Any, modality: Modality, where: str) -> RequestError:
    """The error about an object that is no item of this modality."""
    return refusal(where, f"expected {MODALITIES[modality].object_forms}; got {_kind(source, modality)}")


def _file(source: str | Path) -> Path | None:
    """The absolute path of a file that is there."""
    try:
        path = Path(source).expanduser().absolute()
        return path if path.is_file() else None
    except (OSError, ValueError, RuntimeError):  # too long, a NUL in it, a user that does not exist
        return None


def _has_scheme(text: str) -> bool:
    text = text[:64].lstrip()
    return text[:5].lower() in ("data:", "file:") or "://" in text


def _kind(source: Any, modality: Modality) -> str:
    info = MODALITIES[modality]
    if info.frames and isinstance(source, PIL.Image.Image):
        return f"one PIL image (a list of them is a {info.noun})"
    if isinstance(source, list | tuple):
        return f"{'an empty' if not source else 'a'} {type(source).__name__}"
    if is_array(source):
        return f"an array or tensor of {num_axes(source)} axes"
    return f"an object of type {type(source).__name__}"
