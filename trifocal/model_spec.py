"""What a checkpoint folder says about itself, read once and normalised: `ModelSpec.from_checkpoint`.

Formats: Hugging Face `config.json` in the flat (released), nested (`text_config`, transformers >= 4.52) and
`rope_parameters` (transformers 5) spellings; `generation_config.json`; `preprocessor_config.json`.
Everything that is wrong with a folder raises `ConfigError` naming the file and the field.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trifocal.errors import ArgumentError, ConfigError, NotAvailableYetError

LLM_KEYS = ("text_config", "llm_config")  # under one of them, config.json of a model of several parts has the text part
_ROPE_ALIASES = {"mrope": "default", "su": "longrope"}
ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "llama3", "longrope")
_SCALES_CONTEXT = ("linear", "dynamic", "yarn", "longrope")
_MOST_SHOWN = 60  # characters of a wrong value in a message


@dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding: `kind` is one of default, linear, dynamic, yarn, llama3, longrope; `extra` its own fields.

    Longrope's own fields are two lists of factors, see `short_context`.
    """

    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    original_max_position_embeddings: int | None = None
    mrope_section: tuple[int, ...] | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def short_context(self) -> int | None:
        """Most positions of a sequence that is run with longrope's short factors; longer ones take the long factors.

        None for the other kinds, which have one set of frequencies.
        """
        return self.original_max_position_embeddings if self.kind == "longrope" else None


@dataclass(frozen=True)
class TextConfig:
    """Shape of the language model, the same words for every family."""

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    max_position_embeddings: int
    is_tied: bool
    hidden_act: str
    rope: RopeConfig
    extra: dict[str, Any] = field(default_factory=dict)  # the raw dict, for what only one family has


@dataclass(frozen=True)
class Quantization:
    """How weights are kept: `method` awq, int8 or int4. `group_size`, AWQ's alone, counts inputs; -1: all of them."""

    method: str
    group_size: int = -1

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Quantization:
        """Read a `quantization_config`. Raises `ConfigError` or `NotAvailableYetError` for what cannot be read."""
        method = str(config.get("quant_method"))
        if method != "awq":
            raise NotAvailableYetError("config.json: quantization_config.quant_method {} (awq works)", method)
        version = str(config.get("version", "gemm")).lower()
        if version != "gemm":
            raise ConfigError(
                f"config.json: quantization_config.version is {version!r}: AWQ weights of this version are not "
                "read, only those of version gemm; quantize the original model again with version GEMM"
            )
        bits, has_zeros, group = config.get("bits", 4), config.get("zero_point", True), config.get("group_size", 128)
        if bits != 4 or has_zeros is not True or not isinstance(group, int):
            raise ConfigError(
                "config.json: quantization_config must have bits 4, zero_point true and a group_size in AWQ, "
                f"found {bits!r}, {has_zeros!r}, {group!r}"
            )
        return cls(method, group)


@dataclass(frozen=True)
class ModelSpec:
    """A checkpoint folder: where it is, what it holds, what it asks for."""

    path: str
    architecture: str
    text: TextConfig
    dtype: str  # "float32", "float16" or "bfloat16": what the weights are stored in
    eos_token_ids: tuple[int, ...]
    hf_config: dict[str, Any]
    generation_config: dict[str, Any]
    preprocessor_config: dict[str, Any]
    quantization: dict[str, Any] = field(default_factory=dict)  # `quantization_config`, unread

    @classmethod
    def from_checkpoint(cls, path: str) -> ModelSpec:
        """Read the JSON files of a folder. Raises `ConfigError`; no weight is opened."""
        folder = Path(path).expanduser()
        if not path or not folder.is_dir():  # an empty path would be the current folder
            raise ArgumentError("{model} {!r} is not a folder; give the path of a local checkpoint folder", path)
        hf = read_json(folder / "config.json", required=True)
        architectures = hf.get("architectures")
        if not isinstance(architectures, list) or not architectures:
            raise ConfigError(f"{folder.name}/config.json: field architectures is missing; it names the model class")
        text_dict = _text_dict(hf)
        generation = read_json(folder / "generation_config.json")
        return cls(
            path=str(folder),
            architecture=str(architectures[0]),
            text=text_config(text_dict, hf),
            dtype=_dtype(hf, text_dict),
            eos_token_ids=_eos_ids(hf, text_dict, generation),
            hf_config=hf,
            generation_config=generation,
            preprocessor_config=_preprocessor(folder),
            quantization=section(hf, "quantization_config") or section(text_dict, "quantization_config"),
        )

    @property
    def max_model_len(self) -> int:
        """Longest context the checkpoint says it was made for, in tokens."""
        rope = self.text.rope
        if self.text.model_type.startswith("gemma3"):  # whose field is the context that the scaling has reached
            return self.text.max_position_embeddings
        if rope.kind in _SCALES_CONTEXT and rope.original_max_position_embeddings:
            return max(self.text.max_position_embeddings, int(rope.original_max_position_embeddings * rope.factor))
        return self.text.max_position_embeddings

    def check_preprocessor(self) -> None:
        """Raise `ConfigError` without a preprocessor_config.json, for a family whose pictures would come out wrong."""
        if not self.preprocessor_config:
            raise ConfigError(
                f"{Path(self.path).name}/preprocessor_config.json is missing: it says how pictures are scaled, cut and "
                "normalised; take it from where the checkpoint comes from"
            )


def read_json(path: Path, *, required: bool = False) -> dict[str, Any]:
    """A JSON object, `{}` for an absent optional file. Raises `ConfigError` with the file's name."""
    where = f"{path.parent.name}/{path.name}"
    try:
        text = path.read_text(encoding="utf-8")
        if not text:
            raise ConfigError(f"{where} is empty (0 bytes): the download was cut short")
        data = json.loads(text)
    except FileNotFoundError:
        if required:
            raise ConfigError(f"{where} is missing: is this a Hugging Face checkpoint folder?") from None
        return {}
    except RecursionError:
        raise ConfigError(f"{where} cannot be read: it is nested too deeply") from None
    except (OSError, ValueError) as error:  # of the bytes, of the JSON
        raise ConfigError(f"{where} cannot be read: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{where} must hold a JSON object, found {type(data).__name__}")
    return data


# ------------------------------------------------------------------------------------------- checked fields


def section(data: Mapping[str, Any], name: str, where: str = "config.json") -> dict[str, Any]:
    """The object under `name`, `{}` where it is absent or null. Raises `ConfigError` for anything else."""
    value = data.get(name)
    if value is not None and not isinstance(value, dict):
        raise ConfigError(f"{where}: {name} must be an object, got {_shown(value)}")
    return value or {}


def positive_int(value: object, name: str, where: str = "config.json") -> int:
    """`value` if it is an integer of at least 1. Raises `ConfigError` naming file and field."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{where}: {name} must be an integer of at least 1, got {_shown(value)}")
    return value


def positive_number(value: object, name: str, where: str = "config.json") -> float:
    """`value` if it is a number above 0 and finite. Raises `ConfigError` naming file and field."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ConfigError(f"{where}: {name} must be a number above 0, got {_shown(value)}")
    return float(value)


def numbers(value: object, count: int, name: str, *, is_positive: bool = False) -> tuple[float, ...]:
    """`value` of preprocessor_config.json if it is a list of `count` finite numbers, all above 0 if `is_positive`.

    Raises `ConfigError` naming file and field.
    """
    given = value if isinstance(value, list) else []
    least = 0.0 if is_positive else -math.inf
    if len(given) != count or not all(type(each) in (int, float) and least < each < math.inf for each in given):
        what = f"{count} numbers{' above 0' * is_positive}"
        raise ConfigError(f"preprocessor_config.json: {name} must be a list of {what}, got {_shown(value)}")
    return tuple(float(each) for each in given)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"


# ------------------------------------------------------------------------------------------- parts of config.json


def _preprocessor(folder: Path) -> dict[str, Any]:
    config = read_json(folder / "preprocessor_config.json")
    if not config:  # transformers 5 writes one file for the whole processor
        config = section(read_json(folder / "processor_config.json"), "image_processor", "processor_config.json")
    return config


def _text_dict(hf: dict[str, Any]) -> dict[str, Any]:
    for key in LLM_KEYS:
        if isinstance(hf.get(key), dict):
            return dict(hf[key])
    return hf


def text_config(text: dict[str, Any], hf: dict[str, Any]) -> TextConfig:
    """Normalise the language model's part of a config; `hf` supplies what a nested part leaves to the top level."""

    def given(name: str) -> Any:
        return text.get(name, hf.get(name))

    def size(name: str) -> int:
        if given(name) is None:
            raise ConfigError(f"config.json: field {name} is missing")
        return positive_int(given(name), name)

    heads, hidden = size("num_attention_heads"), size("hidden_size")
    kv_heads = positive_int(text.get("num_key_value_heads") or heads, "num_key_value_heads")
    if heads % kv_heads:
        raise ConfigError(f"config.json: num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}")
    if not text.get("head_dim") and hidden % heads:
        raise ConfigError(f"config.json: hidden_size {hidden} is no multiple of num_attention_heads {heads}")
    return TextConfig(
        model_type=str(given("model_type") or ""),
        hidden_size=hidden,
        intermediate_size=size("intermediate_size"),
        num_layers=size("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=positive_int(text.get("head_dim") or hidden // heads, "head_dim"),
        vocab_size=size("vocab_size"),
        rms_norm_eps=positive_number(text.get("rms_norm_eps", 1e-6), "rms_norm_eps"),
        max_position_embeddings=size("max_position_embeddings"),
        is_tied=bool(given("tie_word_embeddings")),
        hidden_act=str(text.get("hidden_act", "silu")),
        rope=rope_config(text),
        extra=text,
    )


def rope_config(text: dict[str, Any]) -> RopeConfig:
    """Read `rope_theta` + `rope_scaling` (4.x) or `rope_parameters` (5.x)."""
    name = "rope_parameters" if text.get("rope_parameters") else "rope_scaling"
    scaling = dict(section(text, name))
    kind = str(scaling.pop("rope_type", None) or scaling.get("type") or "default")
    scaling.pop("type", None)
    kind = _ROPE_ALIASES.get(kind, kind)
    if kind not in ROPE_TYPES:
        raise ConfigError(f"config.json: {name} has unknown type {kind!r}; known: {', '.join(ROPE_TYPES)}")
    original = scaling.pop("original_max_position_embeddings", None)
    theta = scaling.pop("rope_theta", None) or text.get("rope_theta") or 10000.0
    if kind in _SCALES_CONTEXT and original is None:
        original = text.get("original_max_position_embeddings") or text.get("max_position_embeddings")
    longest = text.get("max_position_embeddings")
    factor = scaling.pop("factor", None)
    if kind == "longrope" and not factor and original and longest:
        length = positive_int(longest, "max_position_embeddings")
        factor = length / positive_int(original, "original_max_position_embeddings")
    return RopeConfig(
        theta=positive_number(theta, "rope_theta"),
        kind=kind,
        factor=positive_number(factor or 1.0, f"{name}.factor"),
        original_max_position_embeddings=(
            positive_int(original, "original_max_position_embeddings") if original else None
        ),
        mrope_section=_mrope_section(scaling.pop("mrope_section", None), name),
        extra=scaling,
    )


def _mrope_section(value: object, name: str) -> tuple[int, ...] | None:
    if not value:
        return None
    given = value if isinstance(value, list) else [value]
    return tuple(positive_int(part, f"{name}.mrope_section") for part in given)


def _dtype(hf: dict[str, Any], text: dict[str, Any]) -> str:
    for source in (hf, text):
        for key in ("dtype", "torch_dtype"):
            name = source.get(key)
            if isinstance(name, str):
                name = name.removeprefix("torch.")
                if name not in ("float32", "float16", "bfloat16"):
                    raise ConfigError(f"config.json: {key} is {name!r}; known: float32, float16, bfloat16")
                return name
    return "float32"


def _eos_ids(*sources: dict[str, Any]) -> tuple[int, ...]:
    ids: list[int] = []
    for source in sources:
        value = source.get("eos_token_id")
        for token_id in value if isinstance(value, list) else [value]:
            if isinstance(token_id, int) and token_id not in ids:
                ids.append(token_id)
    return tuple(ids)
