"""The vision tower's shape as a Qwen2.5-VL checkpoint gives it, in all the spellings that were released."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from trifocal.errors import ConfigError
from trifocal.model_spec import ModelSpec, numbers, positive_int, positive_number, section

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_ALIASES = {"in_chans": "in_channels", "fullatt_block_indexes": "full_attention_blocks"}


def _indices(value: object, name: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(index) is int for index in value):
        raise ConfigError(f"config.json: {name} must be a list of integers, got {value!r}")
    return tuple(value)


_CHECKS: dict[str, Callable[[object, str], Any]] = {
    "int": positive_int,
    "float": positive_number,
    "tuple[int, ...]": _indices,
}


@dataclass(frozen=True)
class VisionConfig:
    """Defaults are those of the released 3B to 72B models: the 32B file leaves most fields out.

    Sizes are in pixels (`patch_size`, `window_size`), frames (`temporal_patch_size`) and patches
    (`spatial_merge_size`: so many patches squared become one token).
    """

    out_hidden_size: int
    depth: int = 32
    hidden_size: int = 1280
    intermediate_size: int = 3420
    num_heads: int = 16
    in_channels: int = 3
    patch_size: int = 14
    temporal_patch_size: int = 2
    spatial_merge_size: int = 2
    window_size: int = 112
    full_attention_blocks: tuple[int, ...] = (7, 15, 23, 31)
    tokens_per_second: float = 2.0  # as in every released file; the default of transformers' class, 4, is in none
    hidden_act: str = "silu"
    image_mean: tuple[float, ...] = _CLIP_MEAN
    image_std: tuple[float, ...] = _CLIP_STD
    rescale_factor: float = 1 / 255

    @classmethod
    def from_spec(cls, spec: ModelSpec) -> VisionConfig:
        """Read `vision_config` and the normalisation of `preprocessor_config.json`. Raises `ConfigError`."""
        spec.check_preprocessor()
        preprocessor = spec.preprocessor_config
        given: dict[str, Any] = {}
        known = {item.name: item.type for item in fields(cls)}  # types as they are written here
        for name, value in section(spec.hf_config, "vision_config").items():
            ours = _ALIASES.get(name, name)
            if ours in known and value is not None:
                check = _CHECKS.get(str(known[ours]))
                given[ours] = check(value, f"vision_config.{name}") if check else value
        for name in ("image_mean", "image_std"):
            if preprocessor.get(name) is not None:
                given[name] = numbers(preprocessor[name], 3, name, is_positive=name == "image_std")
        if preprocessor.get("rescale_factor") is not None:
            factor = preprocessor["rescale_factor"]
            given["rescale_factor"] = positive_number(factor, "rescale_factor", "preprocessor_config.json")
        config = cls(**{"out_hidden_size": spec.text.hidden_size, **given})
        config._check(spec.text.hidden_size)
        return config

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def merge_unit(self) -> int:
        """Patches that become one token."""
        return self.spatial_merge_size**2

    @property
    def patch_bytes(self) -> int:
        """Columns of a row of pixels: channels x frames x height x width of one patch."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def window_groups(self) -> int:
        """Merged patches along one side of an attention window."""
        return self.window_size // self.patch_size // self.spatial_merge_size

    def _check(self, text_hidden_size: int) -> None:
        if self.hidden_act != "silu":
            raise ConfigError(f"config.json: vision_config.hidden_act {self.hidden_act!r} is not supported")
        if self.hidden_size % self.num_heads or self.head_dim % 4:
            raise ConfigError(
                f"config.json: vision_config.hidden_size {self.hidden_size} over num_heads {self.num_heads} "
                "must be a multiple of 4, for a rotary embedding on two axes"
            )
        if self.window_groups < 1:
            raise ConfigError(f"config.json: vision_config.window_size {self.window_size} is below one merged patch")
        if self.out_hidden_size != text_hidden_size:
            raise ConfigError(
                f"config.json: vision_config.out_hidden_size {self.out_hidden_size} differs from the language "
                f"model's hidden_size {text_hidden_size}"
            )
        if self.in_channels != 3:
            raise ConfigError(f"config.json: vision_config.in_channels must be 3, got {self.in_channels}")
