"""The vision part's shape from both checkpoint formats: the original InternVLChatModel, and transformers' own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trifocal.errors import ConfigError
from trifocal.model_spec import ModelSpec, numbers, positive_int, positive_number

NATIVE = "InternVLForConditionalGeneration"
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_NORMS = ("layer_norm", "rms_norm")

# Defaults of InternVisionConfig (original) and InternVLVisionConfig (native): files leave out what equals them.
_ORIGINAL_DEFAULTS: dict[str, Any] = {
    "hidden_size": 3200, "intermediate_size": 12800, "num_hidden_layers": 48, "num_attention_heads": 25,
    "image_size": 224, "patch_size": 14, "qkv_bias": False, "qk_normalization": True, "norm_type": "rms_norm",
    "layer_norm_eps": 1e-6, "hidden_act": "gelu",
}  # fmt: skip
_NATIVE_DEFAULTS: dict[str, Any] = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "image_size": 448, "patch_size": 14, "attention_bias": False, "use_qk_norm": False, "norm_type": "layer_norm",
    "layer_norm_eps": 1e-6, "hidden_act": "gelu", "use_mean_pooling": True, "use_absolute_position_embeddings": True,
}  # fmt: skip


@dataclass(frozen=True)
class VisionConfig:
    """Sizes in pixels (`image_size`: of the position table, `tile_size`: of what is encoded, `patch_size`) and in
    patches (`merge`: so many patches squared become one token). `is_transposed`: the tokens of a tile lie column by
    column, the mistake of ps_version v1."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    image_size: int
    tile_size: int
    patch_size: int
    norm_type: str
    norm_eps: float
    qkv_bias: bool
    qk_norm: bool
    merge: int
    is_transposed: bool
    image_mean: tuple[float, ...] = _IMAGENET_MEAN
    image_std: tuple[float, ...] = _IMAGENET_STD

    @classmethod
    def from_spec(cls, spec: ModelSpec) -> VisionConfig:
        """Read config.json and the normalisation of preprocessor_config.json. Raises `ConfigError`."""
        hf, is_native = spec.hf_config, spec.architecture == NATIVE
        spec.check_preprocessor()  # all released folders hold one; without, a file was forgotten
        part = hf.get("vision_config")
        if not isinstance(part, Mapping):
            raise ConfigError("config.json: field vision_config is missing; it gives the vision tower's shape")
        given = {name: value for name, value in part.items() if value is not None}
        vision = {**(_NATIVE_DEFAULTS if is_native else _ORIGINAL_DEFAULTS), **given}
        _check_supported(hf, vision, is_native=is_native)
        image_size = _side("config.json: vision_config.image_size", vision["image_size"])
        tile_size = _native_tile(spec) if is_native else hf.get("force_image_size")
        normalization = {
            name: numbers(spec.preprocessor_config[name], 3, name, is_positive=name == "image_std")
            for name in ("image_mean", "image_std")
            if spec.preprocessor_config.get(name) is not None
        }

        def size(name: str) -> int:
            return positive_int(vision[name], f"vision_config.{name}")

        config = cls(
            hidden_size=size("hidden_size"),
            intermediate_size=size("intermediate_size"),
            num_layers=size("num_hidden_layers"),
            num_heads=size("num_attention_heads"),
            image_size=image_size,
            tile_size=_side("the size of a tile", tile_size) if tile_size else image_size,
            patch_size=_side("config.json: vision_config.patch_size", vision["patch_size"]),
            norm_type=str(vision["norm_type"]),
            norm_eps=positive_number(vision["layer_norm_eps"], "vision_config.layer_norm_eps"),
            qkv_bias=bool(vision["attention_bias" if is_native else "qkv_bias"]),
            qk_norm=bool(vision["use_qk_norm" if is_native else "qk_normalization"]),
            merge=_merge(hf.get("downsample_ratio") or 0.5),
            is_transposed=not is_native and hf.get("ps_version", "v1") == "v1",
            **normalization,
        )
        config._check()
        return config

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def grid(self) -> int:
        """Patches along the side of a tile."""
        return self.tile_size // self.patch_size

    @property
    def tokens_per_tile(self) -> int:
        """Embeddings of one tile: 256 in the released models."""
        return (self.grid // self.merge) ** 2

    def _check(self) -> None:
        if self.hidden_size % self.num_heads:
            raise ConfigError(
                f"config.json: vision_config.hidden_size {self.hidden_size} is no multiple of num_attention_heads "
                f"{self.num_heads}"
            )
        if self.norm_type not in _NORMS:
            raise ConfigError(
                f"config.json: vision_config.norm_type {self.norm_type!r} is not supported; supported: "
                f"{', '.join(_NORMS)}"
            )
        if self.tile_size % self.patch_size or self.grid % self.merge:
            raise ConfigError(
                f"config.json: tiles of {self.tile_size} pixels cannot be cut into squares of {self.merge} patches of "
                f"{self.patch_size}"
            )


def _check_supported(hf: Mapping[str, Any], vision: Mapping[str, Any], *, is_native: bool) -> None:
    """Options that no released checkpoint uses otherwise."""
    wanted: list[tuple[str, object, tuple[object, ...]]] = [
        ("vision_config.hidden_act", vision["hidden_act"], ("gelu",)),
    ]
    if is_native:
        wanted += [
            ("vision_feature_layer", hf.get("vision_feature_layer", -1), (-1,)),
            ("vision_feature_select_strategy", hf.get("vision_feature_select_strategy", "default"), ("default",)),
            ("projector_hidden_act", hf.get("projector_hidden_act", "gelu"), ("gelu",)),
            ("vision_config.use_mean_pooling", vision["use_mean_pooling"], (True,)),
            ("vision_config.use_absolute_position_embeddings", vision["use_absolute_position_embeddings"], (True,)),
        ]
    else:
        wanted += [
            ("select_layer", hf.get("select_layer", -1), (-1,)),
            ("ps_version", hf.get("ps_version", "v1"), ("v1", "v2")),
        ]
    for name, value, known in wanted:
        if value not in known:
            supported = ", ".join(str(each) for each in known)
            raise ConfigError(f"config.json: {name} {value!r} is not supported; supported: {supported}")


def _native_tile(spec: ModelSpec) -> object:
    """The image processor's size, which transformers' processor cuts tiles of."""
    size = spec.preprocessor_config.get("size")
    return [size["height"], size.get("width")] if isinstance(size, Mapping) and "height" in size else None


def _merge(ratio: object) -> int:
    """`downsample_ratio` as the number of patches along the side of a token."""
    merge = 1 / positive_number(ratio, "downsample_ratio")
    if merge != int(merge):
        raise ConfigError(f"config.json: downsample_ratio must be 1, 0.5 or one over another integer, got {ratio!r}")
    return int(merge)


def _side(name: str, value: object) -> int:
    """A square's side, written as a number or as two equal ones."""
    sides = value if isinstance(value, list) else [value]
    if len(set(map(str, sides))) != 1 or type(sides[0]) is not int or sides[0] < 1:
        raise ConfigError(f"{name} must be one positive number of pixels, got {value!r}")
    return sides[0]
