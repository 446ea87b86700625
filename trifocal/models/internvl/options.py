"""What a checkpoint and a request say about the tiles of pictures and the frames of clips, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trifocal.errors import ConfigError, RequestError
from trifocal.model_spec import ModelSpec
from trifocal.models.internvl.config import NATIVE
from trifocal.prompt.part_options import is_rate

DEFAULT_NUM_FRAMES = 32  # num_segments of `load_video` in the models' README, and vLLM's
MOST_TILES = 128  # the models were tried with up to 40; a request must not ask for millions
MOST_FRAMES = 4096  # a million tokens

# The original config's words, and those of transformers' image processor for the same.
_ALIASES = {
    "min_patches": "min_dynamic_patch",
    "max_patches": "max_dynamic_patch",
    "crop_to_patches": "dynamic_image_size",
}
_COUNTS = ("min_dynamic_patch", "max_dynamic_patch", "num_frames")
_FLAGS = ("dynamic_image_size", "use_thumbnail")
KNOWN = (*_COUNTS, *_FLAGS, "fps", *_ALIASES)


@dataclass(frozen=True, slots=True)
class TileLimits:
    """How a picture is cut: least and most tiles (1 and 1: it is one tile), and whether a thumbnail follows them."""

    min_tiles: int
    max_tiles: int
    has_thumbnail: bool


@dataclass(frozen=True, slots=True)
class MediaOptions:
    """mm_processor_kwargs of this family; `None` where they do not say. `num_frames` wins over `fps`."""

    min_dynamic_patch: int | None = None
    max_dynamic_patch: int | None = None
    dynamic_image_size: bool | None = None
    use_thumbnail: bool | None = None
    num_frames: int | None = None
    fps: float | None = None

    @classmethod
    def parse(cls, options: Mapping[str, Any]) -> MediaOptions:
        """Check `options`. Raises `RequestError(param="mm_processor_kwargs")`."""
        values: dict[str, Any] = {}
        for name, value in options.items():
            if name not in KNOWN:
                raise _bad(f"{name!r} is not known; known: {', '.join(KNOWN)}")
            if value is not None:
                _check(name, value)
                values[_ALIASES.get(name, name)] = value
        least, most = values.get("min_dynamic_patch"), values.get("max_dynamic_patch")
        if least is not None and most is not None and least > most:
            raise _bad(f"min_dynamic_patch {least} is above max_dynamic_patch {most}")
        return cls(**values)

    @classmethod
    def of_checkpoint(cls, spec: ModelSpec) -> MediaOptions:
        """What the checkpoint's files say, and their classes' defaults where they do not. Raises `ConfigError`."""
        if spec.architecture == NATIVE:  # InternVLProcessor crops by default and always adds the thumbnail
            defaults = {"min_patches": 1, "max_patches": 12, "crop_to_patches": True, "use_thumbnail": True}
            source = {name: spec.preprocessor_config.get(name) for name in _ALIASES}
        else:
            defaults = {
                "min_dynamic_patch": 1, "max_dynamic_patch": 6, "dynamic_image_size": False, "use_thumbnail": False
            }  # fmt: skip
            source = {name: spec.hf_config.get(name) for name in defaults}
        try:
            return cls.parse({**defaults, **{name: value for name, value in source.items() if value is not None}})
        except RequestError as error:
            where = "preprocessor_config.json" if spec.architecture == NATIVE else "config.json"
            raise ConfigError(f"{where}: {error.message.removeprefix(_PREFIX)}") from None

    def tiles(self, checkpoint: MediaOptions) -> TileLimits:
        """How pictures are cut: by the request's words, else the checkpoint's. Raises `RequestError`."""

        def pick(name: str) -> Any:
            value = getattr(self, name)
            return getattr(checkpoint, name) if value is None else value

        if not pick("dynamic_image_size"):
            return TileLimits(1, 1, False)
        limits = TileLimits(pick("min_dynamic_patch"), pick("max_dynamic_patch"), pick("use_thumbnail"))
        if limits.min_tiles > limits.max_tiles:
            raise _bad(f"min_dynamic_patch {limits.min_tiles} is above max_dynamic_patch {limits.max_tiles}")
        return limits

    def num_sampled(self, total: int, fps: float) -> int:
        """How many of a clip's `total` frames are used."""
        if self.num_frames is not None:
            wanted = self.num_frames
        elif self.fps is not None:
            wanted = int(min(total / fps * self.fps, MOST_FRAMES))
        else:
            wanted = DEFAULT_NUM_FRAMES
        return max(1, min(wanted, total))


_PREFIX = "mm_processor_kwargs: "


def _bad(message: str) -> RequestError:
    return RequestError(_PREFIX + message, param="mm_processor_kwargs")


def _check(name: str, value: object) -> None:
    meaning = _ALIASES.get(name, name)
    if meaning in _FLAGS:
        if not isinstance(value, bool):
            raise _bad(f"{name} must be true or false, got {value!r}")
    elif meaning == "fps":
        if not is_rate(value):
            raise _bad(f"fps must be a positive number, got {value!r}")
    else:
        most = MOST_FRAMES if meaning == "num_frames" else MOST_TILES
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise _bad(f"{name} must be an integer from 1 to {most}, got {value!r}")
