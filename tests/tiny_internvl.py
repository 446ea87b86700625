"""Tiny random InternVL checkpoints in every format, over every language model; written without transformers.

Weights are large and norms, layer scales, class token and position table random, so that a missing or misplaced tensor
changes the answer. The same seed gives the same weights in every format.
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
from tests.tiny_text import CHAT_TEMPLATE, HIDDEN, Text, as_internlm2, replaced, text_config, text_shapes

Vision = Literal["300M", "6B"]
Format = Literal["original", "native", "native-memory"]

VISION_HIDDEN, VISION_INTERMEDIATE, VISION_LAYERS, VISION_HEADS = 32, 48, 3, 2
TILE, PATCH, TOKENS_PER_TILE = 56, 14, 4
IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SPECIAL = ("<img>", "</img>", "<IMG_CONTEXT>")
# Of transformers' InternVL files.
NATIVE_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' %}"
    "{{ '<IMG_CONTEXT>\n' }}{% elif content['type'] == 'video' %}{{ '<video>\n' }}{% elif content['type'] == 'text' %}"
    "{{ content['text'] }}{% endif %}{% endfor %}{% endif %}{{'<|im_end|>\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{'<|im_start|>assistant\n' }}{% endif %}"
)


@cache
def tokenizer_json(has_video_token: bool = False) -> str:
    """The tiny Qwen tokenizer and InternVL's control tokens."""
    tokenizer = Tokenizer.from_str(tiny.tokenizer_json())
    names = (*SPECIAL, "<video>") if has_video_token else SPECIAL
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in names])
    return tokenizer.to_str()


@cache
def token_ids() -> dict[str, int]:
    """Ids of the control tokens by name."""
    tokenizer = Tokenizer.from_str(tokenizer_json(True))
    return {name: tokenizer.token_to_id(name) for name in (*tiny.SPECIAL, *SPECIAL, "<video>")}


def config(text: Text, vision: Vision, layout: Format, *, tied: bool = False, tile: int = TILE) -> dict[str, Any]:
    """`config.json` of a format."""
    is_big = vision == "6B"
    common = {
        "hidden_size": VISION_HIDDEN, "intermediate_size": VISION_INTERMEDIATE, "num_hidden_layers": VISION_LAYERS,
        "num_attention_heads": VISION_HEADS, "hidden_act": "gelu", "layer_norm_eps": 1e-6,
        "norm_type": "rms_norm" if is_big else "layer_norm",
    }  # fmt: skip
    if layout == "original":
        part = {**common, "model_type": "intern_vit_6b", "image_size": TILE, "patch_size": PATCH,
                "qkv_bias": not is_big, "qk_normalization": is_big, "tie_word_embeddings": True}  # fmt: skip
        return {
            "architectures": ["InternVLChatModel"], "model_type": "internvl_chat", "downsample_ratio": 0.5,
            "dynamic_image_size": True, "force_image_size": tile, "llm_config": text_config(text, tied=tied),
            "max_dynamic_patch": 12, "min_dynamic_patch": 1, "pad2square": False, "ps_version": "v2",
            "select_layer": -1, "template": "internvl2_5", "torch_dtype": "float32", "use_thumbnail": True,
            "vision_config": part,
        }  # fmt: skip
    part = {**common, "model_type": "internvl_vision", "image_size": [TILE, TILE], "patch_size": [PATCH, PATCH],
            "attention_bias": not is_big, "use_qk_norm": is_big, "use_mean_pooling": True}  # fmt: skip
    return {
        "architectures": ["InternVLForConditionalGeneration"], "model_type": "internvl", "downsample_ratio": 0.5,
        "dtype": "float32", "image_seq_length": TOKENS_PER_TILE, "image_token_id": token_ids()["<IMG_CONTEXT>"],
        "projector_hidden_act": "gelu", "vision_feature_layer": -1, "vision_feature_select_strategy": "default",
        "tie_word_embeddings": tied, "text_config": text_config(text, tied=tied), "vision_config": part,
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------- weights


def tensors(text: Text, vision: Vision, *, tied: bool = False, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random float32 weights under the names that transformers writes; InternLM2's as a Llama's."""
    random = np.random.default_rng(seed)
    made = {}
    for name, shape in {**_vision_shapes(vision), **text_shapes(text, "language_model.", tied=tied)}.items():
        is_scale = "norm" in name and name.endswith("weight")
        values = random.uniform(0.5, 1.5, shape) if is_scale or "lambda" in name else random.normal(0.0, 0.25, shape)
        made[name] = torch.from_numpy(values.astype(np.float32))
    return made


def _vision_shapes(vision: Vision) -> dict[str, tuple[int, ...]]:
    width, inner, merged, positions = VISION_HIDDEN, VISION_INTERMEDIATE, 4 * VISION_HIDDEN, (TILE // PATCH) ** 2 + 1
    shapes: dict[str, tuple[int, ...]] = {
        "vision_tower.embeddings.cls_token": (1, 1, width),
        "vision_tower.embeddings.position_embeddings": (1, positions, width),
        "vision_tower.embeddings.patch_embeddings.projection.weight": (width, 3, PATCH, PATCH),
        "vision_tower.embeddings.patch_embeddings.projection.bias": (width,),
        "multi_modal_projector.layer_norm.weight": (merged,),
        "multi_modal_projector.layer_norm.bias": (merged,),
    }
    linears = {"multi_modal_projector.linear_1": (HIDDEN, merged), "multi_modal_projector.linear_2": (HIDDEN, HIDDEN)}
    for index in range(VISION_LAYERS):
        layer = f"vision_tower.encoder.layer.{index}."
        for part in ("q", "k", "v"):
            shapes[f"{layer}attention.{part}_proj.weight"] = (width, width)
            if vision == "300M":
                shapes[f"{layer}attention.{part}_proj.bias"] = (width,)
            elif part != "v":
                shapes[f"{layer}attention.{part}_norm.weight"] = (width,)
        linears[f"{layer}attention.projection_layer"] = (width, width)
        linears |= {f"{layer}mlp.fc1": (inner, width), f"{layer}mlp.fc2": (width, inner)}
        for norm in ("layernorm_before", "layernorm_after"):
            shapes[f"{layer}{norm}.weight"] = (width,)
            if vision == "300M":
                shapes[f"{layer}{norm}.bias"] = (width,)
        shapes[f"{layer}lambda_1"] = shapes[f"{layer}lambda_2"] = (width,)
    for name, shape in linears.items():
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]
    return shapes


_VISION_NAMES = (
    ("vision_tower.embeddings.cls_token", "vision_model.embeddings.class_embedding"),
    ("vision_tower.embeddings.position_embeddings", "vision_model.embeddings.position_embedding"),
    ("vision_tower.embeddings.patch_embeddings.projection", "vision_model.embeddings.patch_embedding"),
    ("vision_tower.encoder.layer", "vision_model.encoder.layers"),
    ("attention.projection_layer", "attn.proj"),
    (".attention.", ".attn."),
    ("layernorm_before", "norm1"),
    ("layernorm_after", "norm2"),
    ("lambda_", "ls"),
    ("multi_modal_projector.layer_norm", "mlp1.0"),
    ("multi_modal_projector.linear_1", "mlp1.1"),
    ("multi_modal_projector.linear_2", "mlp1.3"),
)


def renamed(weights: dict[str, torch.Tensor], text: Text, layout: Format) -> dict[str, torch.Tensor]:
    """`tensors` under the names of a format."""
    if layout == "native":
        return weights
    if layout == "native-memory":
        moved = {name.replace("language_model.model.", "language_model."): each for name, each in weights.items()}
        return {
            "lm_head.weight" if "lm_head" in name else f"model.{name}": each for name, each in moved.items()
        }  # fmt: skip
    vision = {name: each for name, each in weights.items() if not name.startswith("language_model.")}
    language = {name: each for name, each in weights.items() if name.startswith("language_model.")}
    for index in range(VISION_LAYERS):
        prefix = f"vision_tower.encoder.layer.{index}.attention."
        for kind in ("weight", "bias"):
            if f"{prefix}q_proj.{kind}" in vision:
                vision[f"{prefix}qkv.{kind}"] = torch.cat([vision.pop(f"{prefix}{part}_proj.{kind}") for part in "qkv"])
    if text == "internlm2":
        language = as_internlm2(language, "language_model.")
    return replaced(vision, _VISION_NAMES) | language


# ---------------------------------------------------------------------------------------------- folders


def write_checkpoint(
    folder: str | Path, text: Text = "qwen2", vision: Vision = "300M", layout: Format = "original", *,
    tied: bool = False, seed: int = 0, tile: int = TILE,
) -> Path:  # fmt: skip
    """Write a whole checkpoint folder and return it."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = renamed(tensors(text, vision, tied=tied, seed=seed), text, layout)
    save_file({name: each.contiguous() for name, each in weights.items()}, folder / "model.safetensors")
    is_native = layout != "original"
    settings = {"chat_template": NATIVE_TEMPLATE if is_native else CHAT_TEMPLATE, "eos_token": "<|endoftext|>"}
    preprocessor: dict[str, Any] = {"image_mean": list(IMAGE_MEAN), "image_std": list(IMAGE_STD)}
    if is_native:
        preprocessor |= {"size": {"height": tile, "width": tile}, "crop_to_patches": True, "max_patches": 12}
    files = {
        "config.json": config(text, vision, layout, tied=tied, tile=tile),
        "generation_config.json": {"eos_token_id": 2},
        "preprocessor_config.json": preprocessor,
        "tokenizer_config.json": settings,
    }
    for name, data in files.items():
        (folder / name).write_text(json.dumps(data, indent=1, ensure_ascii=False), encoding="utf-8")
    (folder / "tokenizer.json").write_text(tokenizer_json(is_native), encoding="utf-8")
    return folder
