"""Tiny random MiniCPM-V checkpoints of every version, under the released tensor names; written without transformers.

Weights are large and norms, tables and queries random, so that a missing or misplaced tensor changes the answer.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer

from tests import tiny

Version = Literal["2.6", "2.5", "2.0"]
VERSIONS: tuple[Version, ...] = ("2.6", "2.5", "2.0")

SPECIAL = (
    "<image>", "</image>", "<slice>", "</slice>", "<image_id>", "</image_id>", "<unk>", "<s>", "</s>", "<用户>", "<AI>",
    "<|begin_of_text|>", "<|eot_id|>", "<|end_of_text|>",
)  # fmt: skip
VOCAB, HIDDEN, INTERMEDIATE, LAYERS, HEADS, HEAD_DIM = 400, 256, 96, 2, 4, 64
QUERIES, RESOLUTION, PATCH, MAX_POSITIONS = 16, 112, 14, 1024
SCALES = {"scale_emb": 3, "scale_depth": 1.4, "dim_model_base": 128}
VISION = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": PATCH,
    "image_size": 980,
}  # fmt: skip
TEMPLATES: dict[Version, str | None] = {
    "2.6": "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "2.5": "{{ bos_token }}{% for message in messages %}"
    "{{ message['role'] + '\n\n' + message['content'] + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant\n\n' }}{% endif %}",
    "2.0": None,
}
_BOS_EOS: dict[Version, tuple[str, str]] = {
    "2.6": ("<|endoftext|>", "<|im_end|>"), "2.5": ("<|begin_of_text|>", "<|end_of_text|>"), "2.0": ("<s>", "</s>"),
}  # fmt: skip


@cache
def tokenizer_json() -> str:
    """The tiny Qwen tokenizer and the control tokens of all versions."""
    tokenizer = Tokenizer.from_str(tiny.tokenizer_json())
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in SPECIAL])
    assert tokenizer.get_vocab_size() <= VOCAB
    return tokenizer.to_str()


@cache
def token_ids() -> dict[str, int]:
    """Ids of the control tokens by name."""
    tokenizer = Tokenizer.from_str(tokenizer_json())
    return {name: tokenizer.token_to_id(name) for name in (*tiny.SPECIAL, *SPECIAL)}


def config(version: Version) -> dict[str, Any]:
    """`config.json` with the fields that the released file of this version has."""
    settings: dict[str, Any] = {
        "architectures": ["MiniCPMV"], "model_type": "minicpmv", "hidden_size": HIDDEN, "vocab_size": VOCAB,
        "intermediate_size": INTERMEDIATE, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS if version == "2.0" else 2, "max_position_embeddings": MAX_POSITIONS,
        "rms_norm_eps": 1e-6 if version == "2.6" else 1e-5, "rope_theta": 1e4 if version == "2.0" else 1e6,
        "hidden_act": "silu", "tie_word_embeddings": False, "torch_dtype": "float32", "query_num": QUERIES,
        "drop_vision_last_layer": version == "2.0", "vision_config": dict(VISION),
    }  # fmt: skip
    if version == "2.0":
        settings["vision_config"]["image_size"] = 84  # 6 x 6 positions
        return settings | SCALES | {"version": "2.0", "max_slice_nums": 9, "scale_resolution": RESOLUTION}
    settings |= {"version": version, "slice_config": {"max_slice_nums": 9, "patch_size": PATCH}, "slice_mode": True}
    return settings | ({"use_image_id": True, "version": 2.6} if version == "2.6" else {})


def preprocessor_config(version: Version) -> dict[str, Any]:
    """`preprocessor_config.json`; version 2.0 has none."""
    common = {
        "image_processor_type": "MiniCPMVImageProcessor", "image_feature_size": QUERIES, "max_slice_nums": 9,
        "scale_resolution": RESOLUTION, "patch_size": PATCH, "norm_mean": [0.5] * 3, "norm_std": [0.5] * 3,
        "im_start": "<image>", "im_end": "</image>", "slice_start": "<slice>", "slice_end": "</slice>", "unk": "<unk>",
    }  # fmt: skip
    ids = {"im_id_start": "<image_id>", "im_id_end": "</image_id>", "use_image_id": True, "slice_mode": True}
    return {"2.6": common | ids, "2.5": common, "2.0": {}}[version]


def tensors(version: Version, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random float32 weights under the released names."""
    settings = config(version)
    shapes = {f"llm.{name}": shape for name, shape in _text_shapes(settings).items()}
    shapes |= {f"vpm.{name}": shape for name, shape in _vision_shapes(settings).items()}
    shapes |= {f"resampler.{name}": shape for name, shape in _resampler_shapes().items()}
    random = np.random.default_rng(seed)
    made = {}
    for name, shape in shapes.items():
        is_norm = "norm" in name or ".ln_" in name
        if is_norm and name.endswith("weight"):
            values = random.uniform(0.5, 1.5, shape)
        elif len(shape) == 1:
            values = random.normal(0.0, 0.3, shape)
        else:
            is_table = "embed_tokens" in name or "pos" in name or name.endswith("query")
            values = random.normal(0.0, 0.7 if is_table else 1.5 / np.prod(shape[1:]) ** 0.5, shape)
        made[name] = torch.from_numpy(values.astype(np.float32))
    return made


def _text_shapes(settings: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    kv_dim = settings["num_key_value_heads"] * HEAD_DIM
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCAB, HIDDEN)
    }  # fmt: skip
    for index in range(LAYERS):
        layer = f"model.layers.{index}."
        for name, width in (("q", HIDDEN), ("k", kv_dim), ("v", kv_dim)):
            shapes[f"{layer}self_attn.{name}_proj.weight"] = (width, HIDDEN)
            if settings["version"] == 2.6:
                shapes[f"{layer}self_attn.{name}_proj.bias"] = (width,)
        shapes[f"{layer}self_attn.o_proj.weight"] = (HIDDEN, HIDDEN)
        shapes[f"{layer}mlp.gate_proj.weight"] = shapes[f"{layer}mlp.up_proj.weight"] = (INTERMEDIATE, HIDDEN)
        shapes[f"{layer}mlp.down_proj.weight"] = (HIDDEN, INTERMEDIATE)
        shapes[f"{layer}input_layernorm.weight"] = shapes[f"{layer}post_attention_layernorm.weight"] = (HIDDEN,)
    return shapes


def _vision_shapes(settings: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    vision = settings["vision_config"]
    width, inner, cells = vision["hidden_size"], vision["intermediate_size"], (vision["image_size"] // PATCH) ** 2
    weights: dict[str, tuple[int, ...]]
    table: dict[str, tuple[int, ...]]
    if settings["version"] == "2.0":
        table, norm, prefix = {"pos_embed": (1, cells, width)}, "norm", "blocks"
        weights = {"patch_embed.proj": (width, 3, PATCH, PATCH)}
        parts = {"attn.qkv": (3 * width, width), "attn.proj": (width, width), "norm1": (width,), "norm2": (width,)}
    else:
        table = {"embeddings.position_embedding.weight": (cells, width)}
        norm, prefix = "post_layernorm", "encoder.layers"
        weights = {"embeddings.patch_embedding": (width, 3, PATCH, PATCH)}
        parts = {f"self_attn.{name}_proj": (width, width) for name in ("q", "k", "v", "out")}
        parts |= {"layer_norm1": (width,), "layer_norm2": (width,)}
    parts |= {"mlp.fc1": (inner, width), "mlp.fc2": (width, inner)}
    weights[norm] = (width,)
    # The last layer of 2.0 is not in its files: it was dropped before they were saved.
    for index in range(vision["num_hidden_layers"] - settings["drop_vision_last_layer"]):
        weights |= {f"{prefix}.{index}.{name}": shape for name, shape in parts.items()}
    shapes = {f"{name}.weight": shape for name, shape in weights.items()}
    return shapes | {f"{name}.bias": shape[:1] for name, shape in weights.items()} | table


def _resampler_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "query": (QUERIES, HIDDEN), "kv_proj.weight": (HIDDEN, VISION["hidden_size"]), "proj": (HIDDEN, HIDDEN),
        "attn.in_proj_weight": (3 * HIDDEN, HIDDEN), "attn.in_proj_bias": (3 * HIDDEN,),
        "attn.out_proj.weight": (HIDDEN, HIDDEN), "attn.out_proj.bias": (HIDDEN,),
    }  # fmt: skip
    for name in ("ln_q", "ln_kv", "ln_post"):
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (HIDDEN,)
    return shapes


def write_checkpoint(folder: str | Path, version: Version = "2.6", *, seed: int = 0) -> Path:
    """Write a whole checkpoint folder and return it."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    ids = token_ids()
    bos, eos = _BOS_EOS[version]
    settings = {**config(version), "bos_token_id": ids[bos], "eos_token_id": ids[eos]}
    tokenizer_config = {"bos_token": bos, "eos_token": eos, "unk_token": "<unk>", "chat_template": TEMPLATES[version]}
    files = {"config.json": settings, "tokenizer_config.json": tokenizer_config}
    if version != "2.0":
        files["preprocessor_config.json"] = preprocessor_config(version)
    for name, data in files.items():
        (folder / name).write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    (folder / "tokenizer.json").write_text(tokenizer_json(), encoding="utf-8")
    extra = {"resampler.pos_embed": torch.zeros(QUERIES, HIDDEN)} if version == "2.0" else {}
    save_file(tensors(version, seed) | extra, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
