"""Media of requests: how many, how large, how they are fetched and read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, get_args

from trifocal.config import envs
from trifocal.config.arguments import above_zero, arg, at_least_one, decided, fits_bytes, from_env, part
from trifocal.errors import ArgumentError
from trifocal.log import get_logger
from trifocal.types import Modality

logger = get_logger(__name__)
_MODALITIES: tuple[Modality, ...] = get_args(Modality)
_PROFILING_KEYS = ("width", "height", "num_frames")
_DEFAULT_LIMIT = 999  # as in vLLM: many enough to mean "as many as fit the context"


@dataclass(frozen=True, kw_only=True)
class MediaSizeArgs:
    """Arguments that bound what decoding one request may take (`media.limits.MediaLimits`)."""

    max_image_pixels: int = arg(
        "media", "most pixels of a picture or of a video's frame, as the file's header says", 128_000_000
    )
    max_request_pixels: int = arg("media", "most pixels of all pictures and chosen frames of a request", 4_000_000_000)
    max_video_frames: int = arg("media", "most frames that may be chosen from one clip", 2048)
    image_decode_timeout: float = arg("media", "seconds that decoding one picture may take", 30.0)
    video_decode_timeout: float = arg("media", "seconds that decoding one clip may take", 120.0)
    decode_memory_gib: float = arg("media", "GiB of memory that a decoder process may take", 2.0)

    @property
    def decode_memory_bytes(self) -> int:
        return int(self.decode_memory_gib * (1 << 30))


@dataclass(frozen=True, kw_only=True)
class MediaReadingArgs:
    """Arguments about how many media a request may have, and how they are read."""

    limit_mm_per_prompt: dict[str, Any] = arg(
        "media", 'most items of each kind in a prompt, JSON, e.g. {"image": 4, "video": 1}', {}
    )
    mm_processor_kwargs: dict[str, Any] = arg("media", 'JSON for the processor, e.g. {"max_pixels": 401408}', {})
    interleave_mm_strings: bool = arg(
        "media",
        "keep pictures and clips where they stand among a message's texts; false: put them first where the chat "
        "template takes strings, which is vLLM's default",
        True,
    )
    media_io_kwargs: dict[str, Any] = arg("media", 'JSON for reading media, e.g. {"video": {"num_frames": 32}}', {})


@dataclass(frozen=True, kw_only=True)
class MediaArgs(MediaSizeArgs, MediaReadingArgs):
    """Arguments about media."""


@dataclass(frozen=True, kw_only=True)
class FetchConfig:
    """What the environment says about fetching media from URLs; times are seconds."""

    image_timeout: float = from_env(envs.IMAGE_FETCH_TIMEOUT)
    video_timeout: float = from_env(envs.VIDEO_FETCH_TIMEOUT)
    allows_redirects: bool = from_env(envs.MEDIA_URL_ALLOW_REDIRECTS)


@dataclass(frozen=True, kw_only=True)
class MediaConfig(MediaArgs):
    """`MediaArgs`, decided: `limit_mm_per_prompt` has a number for each modality."""

    limit_mm_per_prompt: dict[str, int] = decided()
    fetch: FetchConfig = field(default_factory=FetchConfig)
    num_threads: int | None = from_env(envs.MEDIA_THREADS)


def media_config(args: MediaArgs, taken: tuple[str, ...]) -> MediaConfig:
    """Decide; `taken` are the kinds of media that the model takes. Raises `ConfigError`."""
    for name in ("max_image_pixels", "max_request_pixels", "max_video_frames"):
        at_least_one(name, getattr(args, name))
    for name in ("image_decode_timeout", "video_decode_timeout", "decode_memory_gib"):
        above_zero(name, getattr(args, name))
    fits_bytes("decode_memory_gib", args.decode_memory_gib)
    return part(MediaConfig, args, limit_mm_per_prompt=_limits(args.limit_mm_per_prompt, taken))


def _limits(limits: dict[str, Any], taken: tuple[str, ...]) -> dict[str, int]:
    numbers: dict[str, int] = {name: _DEFAULT_LIMIT if name in taken else 0 for name in _MODALITIES}
    for name, limit in limits.items():
        number = _count(name, limit) if isinstance(limit, dict) else limit
        if name == "audio" and number == 0:  # asks for what is so anyway
            continue
        if name not in _MODALITIES:
            raise ArgumentError("{limit_mm_per_prompt}: unknown modality {!r}; known: {}", name, ", ".join(_MODALITIES))
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise ArgumentError("{limit_mm_per_prompt}: {} must be an integer of at least 0, got {!r}", name, number)
        if number and name not in taken:
            raise ArgumentError("{limit_mm_per_prompt}: {} {}: this model takes text only", name, number)
        numbers[name] = number
    return numbers


def _count(name: str, limit: dict[str, Any]) -> Any:
    """The number of items in vLLM's longer form, whose other keys say how large the items of its profiling are."""
    for key in limit:
        if key not in ("count", *_PROFILING_KEYS):
            known = ", ".join(("count", *_PROFILING_KEYS))
            raise ArgumentError("{limit_mm_per_prompt}: {}: unknown key {!r}; known: {}", name, key, known)
    unused = [f"{name}.{key}" for key in limit if key != "count"]
    if unused:
        logger.warning(
            "limit_mm_per_prompt: these keys have no effect, as memory is measured in another way: %s",
            ", ".join(unused),
        )
    return limit.get("count", _DEFAULT_LIMIT)
