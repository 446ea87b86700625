"""What a media part may say about its own item, beside its URL or inside the object with it, as in qwen-vl-utils."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from trifocal.errors import RequestError
from trifocal.media.modalities import MODALITIES
from trifocal.types import Modality

Kind = Literal["count", "rate", "flag"]


MOST_NUMBER = 2**53 - 1  # beyond, numbers of JSON are not exact, and arithmetic might overflow


def is_count(value: object) -> bool:
    """Whether `value` is an integer of at least 1, and no monster."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST_NUMBER


def is_rate(value: object) -> bool:
    """Whether `value` is a positive number, and no monster."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= MOST_NUMBER


def whole(value: Any) -> Any:
    """`value` of a JSON document with integers for numbers like 32.0, as some languages write all numbers."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    if isinstance(value, list):
        return [whole(item) for item in value]
    if isinstance(value, Mapping):
        return {name: whole(item) for name, item in value.items()}
    return value


def without_nulls(value: Any) -> Any:
    """`value`, an object without its members that are null: many clients write all members that they know."""
    if isinstance(value, Mapping):
        return {name: member for name, member in value.items() if member is not None}
    return value


COUNT_SCHEMA = {"type": "integer", "minimum": 1, "maximum": MOST_NUMBER}
RATE_SCHEMA = {"type": "number", "exclusiveMinimum": 0, "maximum": MOST_NUMBER}
_KINDS: dict[Kind, tuple[str, Callable[[object], bool]]] = {
    "count": ("an integer of at least 1", is_count),
    "rate": ("a positive number", is_rate),
    "flag": ("true or false", lambda value: isinstance(value, bool)),
}


@dataclass(frozen=True, slots=True)
class PartOption:
    """`kind` of value, and the modalities that the option means something for."""

    kind: Kind
    modalities: tuple[Modality, ...] = ("image", "video")


_PICTURE: tuple[Modality, ...] = ("image",)
_CLIP: tuple[Modality, ...] = ("video",)
PART_OPTIONS: Mapping[str, PartOption] = {
    "min_pixels": PartOption("count"),
    "max_pixels": PartOption("count"),
    "resized_height": PartOption("count"),
    "resized_width": PartOption("count"),
    "max_slice_nums": PartOption("count"),
    "min_dynamic_patch": PartOption("count", _PICTURE),
    "max_dynamic_patch": PartOption("count", _PICTURE),
    "min_patches": PartOption("count", _PICTURE),
    "max_patches": PartOption("count", _PICTURE),
    "dynamic_image_size": PartOption("flag", _PICTURE),
    "crop_to_patches": PartOption("flag", _PICTURE),
    "use_thumbnail": PartOption("flag", _PICTURE),
    "total_pixels": PartOption("count", _CLIP),
    "fps": PartOption("rate", _CLIP),
    "nframes": PartOption("count", _CLIP),
    "num_frames": PartOption("count", _CLIP),
    "min_frames": PartOption("count", _CLIP),
    "max_frames": PartOption("count", _CLIP),
    "do_sample_frames": PartOption("flag", _CLIP),
}
"""Options by name; which of them a family supports is decided by its processor."""

_TIMES = "a part of a clip"
_RATES = "the frame rate; use fps"
OF_A_PROMPT = ("use_image_id",)
REFUSED_OPTIONS: Mapping[str, str] = {
    "video_start": _TIMES,
    "video_end": _TIMES,
    "raw_fps": _RATES,
    "sample_fps": _RATES,
}
"""Options of qwen-vl-utils that are not available here, and why."""
_ALIASES = {"nframes": "num_frames"}
_MAX_SHOWN = 60


def part_options(part: Mapping[Any, Any], field: str, modality: Modality, where: str) -> dict[str, Any]:
    """The options of the media part at `where` whose source is in `field`, `nframes` as `num_frames`.

    Raises `RequestError` that names the option with its path.
    """
    found: dict[str, Any] = {}
    inside = part.get(field)
    places = [(where, part), (f"{where}.{field}", inside if isinstance(inside, Mapping) else {})]
    for place, fields in places:
        for name, value in fields.items():
            if value is not None and name != field and _is_option(name, value, modality, place):
                value = whole(value) if PART_OPTIONS[name].kind == "count" else value
                _check(name, value, f"{place}.{name}")
                key = _ALIASES.get(name, name)
                if found.setdefault(key, value) != value:
                    raise _bad(f"{place}.{name}", f"{key} is given twice for this part: {found[key]} and {value}")
    return found


def _is_option(name: object, value: object, modality: Modality, place: str) -> bool:
    """Whether a part's field is an option of its item. Other fields are judged elsewhere (`message_fields.py`)."""
    if not isinstance(name, str):
        return False
    if name in OF_A_PROMPT:
        raise _bad(f"{place}.{name}", "is an option of the whole prompt: put it into mm_processor_kwargs")
    if name in REFUSED_OPTIONS and without_nulls(value) not in (False, "", [], {}):
        raise _bad(f"{place}.{name}", f"is not available here ({REFUSED_OPTIONS[name]})")
    option = PART_OPTIONS.get(name)
    if option is None:
        return False
    if modality not in option.modalities:
        others = " and ".join(MODALITIES[each].plural for each in option.modalities)
        raise _bad(f"{place}.{name}", f"is an option of {others}, but this part is a {MODALITIES[modality].noun}")
    return True


def _check(name: str, value: object, path: str) -> None:
    meaning, is_right = _KINDS[PART_OPTIONS[name].kind]
    if not is_right(value):
        raise _bad(path, f"must be {meaning}, got {repr(value)[:_MAX_SHOWN]}")


def _bad(path: str, message: str) -> RequestError:
    return RequestError(f"{path} {message}", param=path)
