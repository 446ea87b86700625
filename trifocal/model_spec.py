"""What a checkpoint folder says about itself, read once and normalised: `ModelSpec.from_checkpoint`.

Formats: Hugging Face `config.json` in the flat (released), nested (`text_config`, transformers >= 4.52) and
`rope_parameters` (transformers 5) spellings; `generation_config.json`; `preprocessor_config.json`.
Everything that is wrong with a folder raises `ConfigError` naming the file and the field.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trifocal.types import ConfigError, NotAvailableYetError

_LLM_KEYS = ("text_config", "llm_config")
_ROPE_ALIASES = {"mrope": "default", "su": "longrope"}
_ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "llama3", "longrope")
_SCALES_CONTEXT = ("linear", "dynamic", "yarn", "longrope")


@dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding: `kind` is one of default, linear, dynamic, yarn, llama3, longrope; `extra` its own fields.

    `context_len` is the longest sequence that will be run; longrope chooses its frequencies by it.
    """

    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    original_max_position_embeddings: int | None = None
    mrope_section: tuple[int, ...] | None = None
    context_len: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)


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
    attention_bias: bool = False
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
            raise NotAvailableYetError(f"config.json: quantization_config.quant_method {method} (awq works)")
        version = str(config.get("version", "gemm")).lower()
        if version != "gemm":
            raise ConfigError(
                f"config.json: quantization_config.version is {version!r}: AWQ weights in this layout are not read, "
                "only version gemm is; quantize the original model anew with version GEMM"
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
        if not folder.is_dir():
            raise ConfigError(f"--model {path!r} is not a folder; give the path of a local checkpoint folder")
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
            quantization=dict(hf.get("quantization_config") or text_dict.get("quantization_config") or {}),
        )

    @property
    def max_model_len(self) -> int:
        """Longest context the checkpoint says it was made for, in tokens."""
        rope = self.text.rope
        if rope.kind in _SCALES_CONTEXT and rope.original_max_position_embeddings:
            return max(self.text.max_position_embeddings, int(rope.original_max_position_embeddings * rope.factor))
        return self.text.max_position_embeddings

    def for_context(self, max_model_len: int) -> ModelSpec:
        """The same for sequences of at most `max_model_len` tokens."""
        rope = replace(self.text.rope, context_len=max_model_len)
        return replace(self, text=replace(self.text, rope=rope))


def read_json(path: Path, *, required: bool = False) -> dict[str, Any]:
    """A JSON object, `{}` for an absent optional file. Raises `ConfigError` with the file's name."""
    where = f"{path.parent.name}/{path.name}"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if required:
            raise ConfigError(f"{where} is missing: is this a Hugging Face checkpoint folder?") from None
        return {}
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{where} cannot be read: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{where} must hold a JSON object, found {type(data).__name__}")
    return data


def _preprocessor(folder: Path) -> dict[str, Any]:
    config = read_json(folder / "preprocessor_config.json")
    if not config:  # transformers 5 writes one file for the whole processor
        config = read_json(folder / "processor_config.json").get("image_processor", {})
    return config


def _text_dict(hf: dict[str, Any]) -> dict[str, Any]:
    for key in _LLM_KEYS:
        if isinstance(hf.get(key), dict):
            return dict(hf[key])
    return hf


def text_config(text: dict[str, Any], hf: dict[str, Any]) -> TextConfig:
    """Normalise the language model's part of a config; `hf` supplies what a nested part leaves to the top level."""

    def need(name: str) -> Any:
        value = text.get(name, hf.get(name))
        if value is None:
            raise ConfigError(f"config.json: field {name} is missing")
        return value

    heads = int(need("num_attention_heads"))
    hidden = int(need("hidden_size"))
    tied = text.get("tie_word_embeddings", hf.get("tie_word_embeddings", False))
    return TextConfig(
        model_type=str(text.get("model_type", hf.get("model_type", ""))),
        hidden_size=hidden,
        intermediate_size=int(need("intermediate_size")),
        num_layers=int(need("num_hidden_layers")),
        num_heads=heads,
        num_kv_heads=int(text.get("num_key_value_heads") or heads),
        head_dim=int(text.get("head_dim") or hidden // heads),
        vocab_size=int(need("vocab_size")),
        rms_norm_eps=float(text.get("rms_norm_eps", 1e-6)),
        max_position_embeddings=int(need("max_position_embeddings")),
        is_tied=bool(tied),
        hidden_act=str(text.get("hidden_act", "silu")),
        rope=rope_config(text),
        attention_bias=bool(text.get("attention_bias", False)),
        extra=text,
    )


def rope_config(text: dict[str, Any]) -> RopeConfig:
    """Read `rope_theta` + `rope_scaling` (4.x) or `rope_parameters` (5.x)."""
    scaling = dict(text.get("rope_parameters") or text.get("rope_scaling") or {})
    kind = str(scaling.pop("rope_type", None) or scaling.get("type") or "default")
    scaling.pop("type", None)
    kind = _ROPE_ALIASES.get(kind, kind)
    if kind not in _ROPE_TYPES:
        raise ConfigError(f"config.json: rope_scaling has unknown type {kind!r}; known: {', '.join(_ROPE_TYPES)}")
    section = scaling.pop("mrope_section", None)
    original = scaling.pop("original_max_position_embeddings", None)
    theta = scaling.pop("rope_theta", None) or text.get("rope_theta") or 10000.0
    if kind in _SCALES_CONTEXT and original is None:
        original = text.get("original_max_position_embeddings") or text.get("max_position_embeddings")
    context_len = text.get("max_position_embeddings")
    factor = scaling.pop("factor", None)
    if kind == "longrope" and not factor and original and context_len:
        factor = context_len / original
    return RopeConfig(
        theta=float(theta),
        kind=kind,
        factor=float(factor or 1.0),
        original_max_position_embeddings=int(original) if original else None,
        mrope_section=tuple(int(part) for part in section) if section else None,
        context_len=int(context_len) if context_len else None,
        extra=scaling,
    )


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
