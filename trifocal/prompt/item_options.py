"""What the server, a request and a media part say about an item, put together: `ItemOptions`.

Five layers, the later ones win: --mm-processor-kwargs, --media-io-kwargs, the request's mm_processor_kwargs and
media_io_kwargs, and the part's own options. `fps` and `num_frames` say together how many frames of a clip are used: a
layer with either of them replaces both of the layers before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from trifocal.errors import RequestError
from trifocal.media.decode.video import DEFAULT_FRAMES_FPS, FrameFacts
from trifocal.prompt.part_options import (
    COUNT_SCHEMA,
    MOST_NUMBER,
    RATE_SCHEMA,
    is_count,
    is_rate,
    whole,
)
from trifocal.types import Modality

Options = Mapping[str, Any]
_FRAME_NAMES = ("fps", "num_frames")
_METADATA = ("do_sample_frames", "total_num_frames", "frames_indices", "duration")
_NO_LIMIT = -1  # vLLM's word for it
_BACKENDS = ("opencv", "pyav")  # vLLM's readers that spread the frames evenly
_WHITE = [255, 255, 255]
_MAX_SHOWN = 60


@dataclass(frozen=True, slots=True)
class ItemOptions:
    """One item's options: `processor` is what its family's processor takes, but for `fps` and `num_frames`.

    `frames` has those two, for a file. `is_capped`: they are of media_io_kwargs, two limits of which the lower holds,
    and `num_frames` may be -1. For a clip that is sent as frames, `fps` of media_io_kwargs or of the part is the `rate`
    of these, and that of mm_processor_kwargs is `target_fps`, the one to choose frames by, and otherwise their rate if
    nothing else is; a list has one for each clip. `metadata`: see `FrameFacts`. `overrules_request`: something was said
    after the request's mm_processor_kwargs, which may rule in their place.
    """

    processor: Options = field(default_factory=dict)
    frames: Options = field(default_factory=dict)
    metadata: Options = field(default_factory=dict)
    rate: float | None = None
    target_fps: float | list[float] | None = None
    is_capped: bool = False
    overrules_request: bool = False

    @property
    def facts(self) -> FrameFacts:
        """What they say of a clip that is sent as frames."""
        assert not isinstance(self.target_fps, list)
        metadata = self.metadata if self.rate is None else {"fps": self.rate, **self.metadata}
        return FrameFacts(metadata, self._most_frames, self.target_fps or DEFAULT_FRAMES_FPS)

    def for_file(self, total: int, fps: float) -> Options:
        """The processor's options for choosing frames of a clip of `total` frames at `fps`."""
        wanted = dict(self.frames)
        if self.is_capped and "num_frames" in wanted:
            most = self._most_frames or total
            if "fps" in wanted:
                most = min(most, max(math.floor(total / fps * wanted.pop("fps")), 1))
            wanted["num_frames"] = min(most, total)
        return {**self.processor, **wanted}

    def for_frames(self) -> Options:
        """The same for a clip that is sent as frames."""
        wanted = {"fps": self.target_fps, "num_frames": self._most_frames}  # the family lets the number rule
        return {**self.processor, **{name: value for name, value in wanted.items() if value is not None}}

    @property
    def _most_frames(self) -> int | None:
        most = self.frames.get("num_frames")
        return None if most == _NO_LIMIT else most

    def of_item(self, own: Options, video_index: int = 0) -> ItemOptions:
        """Those of an item whose part says `own`, the `video_index`-th clip: its `fps` is taken from a list of them."""
        options = self
        if isinstance(self.target_fps, list):
            fps = self.target_fps[video_index % len(self.target_fps)]
            frames = {**self.frames, "fps": fps} if isinstance(self.frames.get("fps"), list) else self.frames
            options = replace(self, frames=frames, target_fps=fps)
        return options.overlaid(own, is_own=True)

    def overlaid(self, over: Options, *, is_own: bool = False, is_capped: bool = False) -> ItemOptions:
        """These options with a later layer over them, where `None` takes back what was said before.

        `is_own`: it is not mm_processor_kwargs. `is_capped`: it is media_io_kwargs.
        """
        said = {name: value for name, value in over.items() if name in _FRAME_NAMES and value is not None}
        kept = {name: value for name, value in self.frames.items() if name not in over}
        metadata = {name: over[name] for name in _METADATA if over.get(name) is not None}
        rest = {name: value for name, value in over.items() if name not in (*_FRAME_NAMES, *_METADATA)}
        processor = {name: value for name, value in self.processor.items() if name not in rest}
        return ItemOptions(
            # Where two names speak of the same, the later rules: names are in the order of their layers.
            processor={**processor, **{name: value for name, value in rest.items() if value is not None}},
            frames=said or kept,
            metadata={**self.metadata, **metadata},
            rate=over["fps"] if is_own and "fps" in over else self.rate,
            target_fps=over["fps"] if not is_own and "fps" in over else self.target_fps,
            is_capped=is_capped if said else self.is_capped,
            overrules_request=is_own and (self.overrules_request or bool(said or rest)),
        )


def as_object(value: Any, param: str) -> dict[str, Any]:
    """A request's field `param` that holds options. Raises `RequestError`."""
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise RequestError(f"{param} must be an object", param=param)
    return dict(value)


def seen_by_processor(options: Options) -> dict[str, Any]:
    """mm_processor_kwargs without what no processor sees: `do_sample_frames`, and `fps` as a list, one for each clip.

    Raises `RequestError(param="mm_processor_kwargs")` for these.
    """
    flag, fps = options.get("do_sample_frames"), options.get("fps")
    if flag is not None and not isinstance(flag, bool):
        raise _bad("mm_processor_kwargs", f"do_sample_frames must be true or false, got {_shown(flag)}")
    seen = {name: value for name, value in options.items() if name != "do_sample_frames"}
    if isinstance(fps, list):
        if not (fps and all(map(is_rate, fps))):
            raise _bad(
                "mm_processor_kwargs", f"a list of fps must hold positive numbers, one for each clip, got {_shown(fps)}"
            )
        seen["fps"] = fps[0]
    return seen


@contextmanager
def renamed_option_errors(place: str, param: str) -> Iterator[None]:
    """Errors of a processor about mm_processor_kwargs as errors about `place`, whose options they were."""
    try:
        yield
    except RequestError as error:
        message = error.message.removeprefix("mm_processor_kwargs: ")
        raise RequestError(f"{place}: {message}", param=param) from None


def check_list(options: ItemOptions, num_videos: int) -> None:
    """Raise `RequestError` if a list of `fps` is neither one number nor one for each of `num_videos` clips."""
    fps = options.target_fps
    if isinstance(fps, list) and num_videos and len(fps) not in (1, num_videos):
        raise _bad("mm_processor_kwargs", f"fps is a list of {len(fps)} numbers, but there are {num_videos} clips")


def reading_layer(kwargs: Options) -> Options:
    """Check media_io_kwargs, `{"image": {…}, "video": {…}}` as vLLM's; what they say of clips, without what is neutral.

    Raises `RequestError(param="media_io_kwargs")`.
    """
    kwargs = whole(kwargs)
    for modality, options in kwargs.items():
        if modality not in _READING:
            raise _bad("media_io_kwargs", f"{_shown(modality)} is not a kind of media; known: {', '.join(_READING)}")
        if options is not None and not isinstance(options, Mapping):
            raise _bad("media_io_kwargs", f"{modality} must be an object, got {_shown(options)}")
    said = {}
    for modality, reading in _READING.items():
        for name, value in (kwargs.get(modality) or {}).items():
            check = reading.checks.get(name)
            if check is None:
                _check_neutral(modality, name, value, reading)
                continue
            if value is not None and not check.is_right(value):
                raise _bad("media_io_kwargs", f"{modality}: {name} must be {check.meaning}, got {_shown(value)}")
            if not (name == "fps" and value == _NO_LIMIT):
                said[name] = value
    return said


def media_io_schema() -> dict[str, Any]:
    """What `reading_layer` takes, as JSON Schema."""

    def options(reading: _Reading) -> dict[str, Any]:
        return {
            **{name: {"anyOf": [check.schema, {"type": "null"}]} for name, check in reading.checks.items()},
            **{name: {"enum": [None, *values]} for name, values in reading.neutral.items()},
        }

    properties = {
        modality: {"type": ["object", "null"], "properties": options(reading), "additionalProperties": False}
        for modality, reading in _READING.items()
    }
    return {"type": ["object", "null"], "properties": properties, "additionalProperties": False}


def _is_index(value: object) -> bool:
    return type(value) is int and 0 <= value <= MOST_NUMBER


@dataclass(frozen=True, slots=True)
class _Check:
    """What an option must be, in words, as a test and as JSON Schema."""

    meaning: str
    is_right: Callable[[Any], bool]
    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Reading:
    """How media of one modality may be asked to be read.

    `neutral`: options of vLLM that are not done here, and the values that ask for what is done.
    """

    neutral: Mapping[str, tuple[Any, ...]]
    checks: Mapping[str, _Check] = field(default_factory=dict)


_OF_FRAMES: Mapping[str, _Check] = {
    "num_frames": _Check(
        "an integer of at least 1, or -1 for all",
        lambda value: is_count(value) or (type(value) is int and value == _NO_LIMIT),
        {"anyOf": [COUNT_SCHEMA, {"enum": [_NO_LIMIT]}]},
    ),
    "fps": _Check(
        "a positive number, or -1 for no limit",
        lambda value: is_rate(value) or (type(value) in (int, float) and value == _NO_LIMIT),
        {"anyOf": [RATE_SCHEMA, {"enum": [_NO_LIMIT]}]},
    ),
    "do_sample_frames": _Check("true or false", lambda value: isinstance(value, bool), {"type": "boolean"}),
    "total_num_frames": _Check("an integer of at least 1", is_count, COUNT_SCHEMA),
    "duration": _Check("a positive number", is_rate, RATE_SCHEMA),
    "frames_indices": _Check(
        "a list of integers of at least 0",
        lambda value: isinstance(value, list) and all(map(_is_index, value)),
        {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": MOST_NUMBER}},
    ),
}
_READING: Mapping[Modality, _Reading] = {
    "image": _Reading({"image_mode": ("RGB",), "rgba_background_color": (_WHITE,)}),
    "video": _Reading(
        {"video_backend": _BACKENDS, "backend": _BACKENDS, "frame_recovery": (False,), "max_duration": ()}, _OF_FRAMES
    ),
}


def _check_neutral(modality: Modality, name: object, value: Any, reading: _Reading) -> None:
    """Raise for an option that is not known, or known in vLLM and not done here, unless it asks for what is done."""
    neutral = reading.neutral
    if name not in neutral:
        known = [*reading.checks, *neutral]
        raise _bad("media_io_kwargs", f"{modality}: {_shown(name)} is not known; known: {', '.join(known)}")
    if value is not None and value not in neutral[str(name)]:
        allowed = " or ".join(map(str, neutral[str(name)]))
        raise _bad(
            "media_io_kwargs",
            f"{modality}: {name} " + (f"must be {allowed}, got {_shown(value)}" if allowed else "is not available"),
        )


def _shown(value: object) -> str:
    return repr(value)[:_MAX_SHOWN]


def _bad(param: str, message: str) -> RequestError:
    return RequestError(f"{param}: {message}", param=param)
