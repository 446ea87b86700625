"""A MiniCPM-V checkpoint's shape: its version, its vision tower, how it slices pictures. The processor reads it too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trifocal.errors import ConfigError
from trifocal.model_spec import ModelSpec, numbers, positive_int, positive_number, section

Version = tuple[int, int]
VERSIONS: tuple[Version, ...] = ((2, 0), (2, 5), (2, 6))
_HEAD_DIM = 128  # of the resampler, in every version
_MARKS = ("im_start", "im_end", "slice_start", "slice_end", "unk", "im_id_start", "im_id_end")
_TIMM_IMAGE_SIZE = 384  # of vit_so400m_patch14_siglip_384: 27 x 27 patches


@dataclass(frozen=True)
class VisionConfig:
    """A SigLIP tower; defaults are SigLIP-400M's. `table_side`: rows and columns of its table of positions.

    Version 2.0 has it from timm (exact GELU, positions interpolated), the later ones in the NaViT form of Idefics2
    (GELU approximated by tanh, positions looked up by fractional coordinates).
    """

    is_timm: bool
    table_side: int
    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_layers: int = 27  # that are run: some checkpoints carry one more than they use
    num_heads: int = 16
    patch_size: int = 14
    layer_norm_eps: float = 1e-6
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class MiniCPMVConfig:
    """`num_queries` tokens stand for each slice of a picture; `batch_size` slices go through the tower at once."""

    version: Version
    vision: VisionConfig
    num_queries: int
    num_heads: int  # of the resampler
    hidden_size: int  # of the language model and the resampler
    scale_resolution: int  # a slice has about the area of a square of so many pixels
    max_slice_nums: int
    use_image_id: bool
    batch_size: int

    @classmethod
    def from_spec(cls, spec: ModelSpec) -> MiniCPMVConfig:
        """Read `config.json` and `preprocessor_config.json`. Raises `ConfigError`."""
        hf, preprocessor = spec.hf_config, spec.preprocessor_config
        version = _version(hf)
        if version > (2, 0):  # which was released without
            spec.check_preprocessor()
        slicing = {**hf, **section(hf, "slice_config"), **preprocessor}
        hidden = spec.text.hidden_size
        if hidden % _HEAD_DIM:
            raise ConfigError(f"config.json: hidden_size {hidden} must be a multiple of {_HEAD_DIM} for the resampler")
        num_queries = positive_int(hf.get("query_num", 96 if version == (2, 5) else 64), "query_num")
        feature_size = preprocessor.get("image_feature_size", num_queries)
        if feature_size != num_queries:
            raise ConfigError(
                f"preprocessor_config.json: image_feature_size {feature_size} differs from query_num {num_queries} "
                "in config.json"
            )
        if version == (2, 0) and int(num_queries**0.5) ** 2 != num_queries:
            raise ConfigError(f"config.json: query_num {num_queries} must be a square number in version 2.0")
        for name in _MARKS:
            if not isinstance(preprocessor.get(name, ""), str):
                raise ConfigError(f"preprocessor_config.json: {name} must be a token, got {preprocessor[name]!r}")
        files = "config.json or preprocessor_config.json"
        return cls(
            version=version,
            vision=_vision(version, hf, slicing),
            num_queries=num_queries,
            num_heads=hidden // _HEAD_DIM,
            hidden_size=hidden,
            scale_resolution=positive_int(slicing.get("scale_resolution", 448), "scale_resolution", files),
            max_slice_nums=positive_int(slicing.get("max_slice_nums", 9), "max_slice_nums", files),
            use_image_id=bool(slicing.get("use_image_id", version == (2, 6))),
            batch_size=positive_int(hf.get("vision_batch_size", 16), "vision_batch_size"),
        )


def _version(hf: dict[str, Any]) -> Version:
    """All versions share one architecture name. The first release has no version field, and a tower from timm."""
    given = hf.get("version", "2.5" if hf.get("vision_config") else "2.0")
    found = next((version for version in VERSIONS if str(given) == f"{version[0]}.{version[1]}"), None)
    if found is None:
        known = ", ".join(f"{major}.{minor}" for major, minor in VERSIONS)
        raise ConfigError(f"config.json: MiniCPM-V version {given!r} is not supported; supported: {known}")
    return found


def _vision(version: Version, hf: dict[str, Any], preprocessor: dict[str, Any]) -> VisionConfig:
    is_timm = version == (2, 0)
    given = section(hf, "vision_config")
    defaults = VisionConfig(is_timm=is_timm, table_side=1)
    act = given.get("hidden_act", "gelu_pytorch_tanh")
    if act != "gelu_pytorch_tanh":
        raise ConfigError(f"config.json: vision_config.hidden_act {act!r} is not supported")

    def size(name: str, default: int) -> int:
        return positive_int(given.get(name, default), f"vision_config.{name}")

    patch_size = size("patch_size", defaults.patch_size)
    config = VisionConfig(
        is_timm=is_timm,
        table_side=size("image_size", _TIMM_IMAGE_SIZE if is_timm else 980) // patch_size,
        hidden_size=size("hidden_size", defaults.hidden_size),
        intermediate_size=size("intermediate_size", defaults.intermediate_size),
        num_layers=size("num_hidden_layers", defaults.num_layers) - bool(hf.get("drop_vision_last_layer", True)),
        num_heads=size("num_attention_heads", defaults.num_heads),
        patch_size=patch_size,
        layer_norm_eps=positive_number(
            given.get("layer_norm_eps", defaults.layer_norm_eps), "vision_config.layer_norm_eps"
        ),
        mean=_normalization(preprocessor, "norm_mean", defaults.mean),
        std=_normalization(preprocessor, "norm_std", defaults.std),
    )
    if config.hidden_size % config.num_heads:
        raise ConfigError(
            f"config.json: vision_config.hidden_size {config.hidden_size} must be a multiple of "
            f"num_attention_heads {config.num_heads}"
        )
    return config


def _normalization(preprocessor: dict[str, Any], name: str, default: tuple[float, ...]) -> tuple[float, ...]:
    if preprocessor.get(name) is None:
        return default
    return numbers(preprocessor[name], 3, name, is_positive=name == "norm_std")
