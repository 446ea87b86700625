"""Tiny random Qwen2.5-VL checkpoints that load and run end to end; written without transformers, in some milliseconds.

Weights are large (0.25) and norms random, so that a missing or misplaced tensor changes the answer and greedy
decoding does not fall into one token. The same seed gives the same weights in every layout.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

Layout = Literal["flat", "nested", "shortened"]

SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
VOCAB = 400  # above the tokenizer's, as in the released models
HIDDEN, INTERMEDIATE, LAYERS, HEADS, HEAD_DIM = 64, 128, 2, 4, 16
MROPE_SECTION = (2, 3, 3)
MAX_POSITIONS = 4096
MIN_PIXELS, MAX_PIXELS = 4 * 28 * 28, 64 * 28 * 28
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": MAX_POSITIONS}

_VISION = {
    "depth": 4, "hidden_act": "silu", "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "in_channels": 3,
    "out_hidden_size": HIDDEN, "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14,
    "temporal_patch_size": 2, "tokens_per_second": 2, "window_size": 112, "fullatt_block_indexes": [1, 3],
}  # fmt: skip
# What the released 32B file says; everything else (depth 32, 16 heads, windows) must come from defaults.
_SHORTENED_VISION = {
    "hidden_size": 64, "in_chans": 3, "intermediate_size": 48, "out_hidden_size": HIDDEN, "spatial_patch_size": 14,
    "tokens_per_second": 2,
}  # fmt: skip
_SENTENCES = (
    "system\nYou are a helpful assistant.",
    "user\nassistant\nDescribe the picture. What is in the image?",
    "The quick brown fox jumps over the lazy dog, and the dog looks at the fox.",
    "How many red circles are in this picture? There are three red circles.",
)
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}"
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}"
    "{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "{% set video_count.value = video_count.value + 1 %}"
    "{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@cache
def tokenizer_json() -> str:
    """A byte-level BPE of Qwen's construction: 256 bytes, some merges, then Qwen's special token names."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=360, show_progress=False, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(_SENTENCES, trainer)
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in SPECIAL])
    return tokenizer.to_str()


@cache
def token_ids() -> dict[str, int]:
    """Ids of the special tokens by name."""
    tokenizer = Tokenizer.from_str(tokenizer_json())
    return {name: tokenizer.token_to_id(name) for name in SPECIAL}


def config(
    *, kv_heads: int = 2, tied: bool = True, layout: Layout = "flat", dtype: str = "float32", vocab: int = VOCAB,
    rope_scaling: dict[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """`config.json`: flat as released, nested as transformers 5 writes it, or with the short vision part of the 32B."""
    ids = token_ids()
    scaling = {**(rope_scaling or {"type": "mrope"}), "mrope_section": list(MROPE_SECTION)}
    text = {
        "hidden_act": "silu", "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": kv_heads, "rms_norm_eps": 1e-6, "vocab_size": vocab,
        "max_position_embeddings": MAX_POSITIONS, "sliding_window": 32, "use_sliding_window": False,
        "max_window_layers": LAYERS, "bos_token_id": ids["<|endoftext|>"], "eos_token_id": ids["<|im_end|>"],
        "attention_dropout": 0.0, "use_cache": True,
    }  # fmt: skip
    top = {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl",
        "tie_word_embeddings": tied, "image_token_id": ids["<|image_pad|>"], "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"], "vision_end_token_id": ids["<|vision_end|>"],
        "vision_token_id": ids["<|vision_pad|>"],
    }  # fmt: skip
    vision = dict(_SHORTENED_VISION if layout == "shortened" else _VISION)
    if layout == "nested":
        kind = scaling.pop("type")
        rope = {**scaling, "rope_type": "default" if kind == "mrope" else kind, "rope_theta": 1e6}
        nested = {**text, "model_type": "qwen2_5_vl_text", "rope_parameters": rope, "dtype": dtype}
        return {**top, "dtype": dtype, "text_config": nested, "vision_config": vision}
    return {**top, **text, "rope_theta": 1e6, "rope_scaling": scaling, "torch_dtype": dtype, "vision_config": vision}


def tensors(settings: dict[str, Any], seed: int = 0) -> dict[str, torch.Tensor]:
    """Random float32 weights of a `config` under the released names (`visual.*`, `model.*`)."""
    text = settings.get("text_config", settings)
    vision = {"depth": 32, "patch_size": 14, "temporal_patch_size": 2, "spatial_merge_size": 2}
    vision |= settings["vision_config"]
    shapes = _text_shapes(text, tied=settings["tie_word_embeddings"]) | _vision_shapes(vision)
    random = np.random.default_rng(seed)
    made = {}
    for name, shape in shapes.items():
        if "norm" in name or "ln_q" in name:
            values = random.uniform(0.5, 1.5, shape)
        else:
            # In a deep tower weights this large are chaotic: the reference's own float32 noise grows to 1e-4.
            is_deep = name.startswith("visual.blocks.") and vision["depth"] > 8
            values = random.normal(0.0, 0.1 if is_deep else 0.25, shape)
        made[name] = torch.from_numpy(values.astype(np.float32))
    return made


def _text_shapes(text: dict[str, Any], *, tied: bool) -> dict[str, tuple[int, ...]]:
    hidden, inner, vocab = text["hidden_size"], text["intermediate_size"], text["vocab_size"]
    kv_dim = hidden // text["num_attention_heads"] * text["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    for index in range(text["num_hidden_layers"]):
        layer = f"model.layers.{index}."
        for name, width in (("q", hidden), ("k", kv_dim), ("v", kv_dim)):
            shapes[f"{layer}self_attn.{name}_proj.weight"] = (width, hidden)
            shapes[f"{layer}self_attn.{name}_proj.bias"] = (width,)
        shapes[f"{layer}self_attn.o_proj.weight"] = (hidden, hidden)
        shapes[f"{layer}mlp.gate_proj.weight"] = shapes[f"{layer}mlp.up_proj.weight"] = (inner, hidden)
        shapes[f"{layer}mlp.down_proj.weight"] = (hidden, inner)
        shapes[f"{layer}input_layernorm.weight"] = shapes[f"{layer}post_attention_layernorm.weight"] = (hidden,)
    if not tied:
        shapes["lm_head.weight"] = (vocab, hidden)
    return shapes


def _vision_shapes(vision: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    width, inner = vision["hidden_size"], vision["intermediate_size"]
    merged = width * vision["spatial_merge_size"] ** 2
    patch = vision["patch_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "visual.patch_embed.proj.weight": (width, 3, vision["temporal_patch_size"], patch, patch),
        "visual.merger.ln_q.weight": (width,),
    }
    linears = {"merger.mlp.0": (merged, merged), "merger.mlp.2": (vision["out_hidden_size"], merged)}
    for index in range(vision["depth"]):
        block = f"blocks.{index}."
        linears |= {f"{block}attn.qkv": (3 * width, width), f"{block}attn.proj": (width, width)}
        linears |= {f"{block}mlp.{name}_proj": (inner, width) for name in ("gate", "up")}
        linears |= {f"{block}mlp.down_proj": (width, inner)}
        shapes[f"visual.{block}norm1.weight"] = shapes[f"visual.{block}norm2.weight"] = (width,)
    for name, shape in linears.items():
        shapes[f"visual.{name}.weight"] = shape
        shapes[f"visual.{name}.bias"] = shape[:1]
    return shapes


def write_checkpoint(
    folder: str | Path, *, kv_heads: int = 2, tied: bool = True, layout: Layout = "flat", seed: int = 0,
    dtype: str = "float32", vocab: int = VOCAB, rope_scaling: dict[str, Any] | None = None, tokenizer: bool = True,
    num_shards: int = 1,
) -> Path:  # fmt: skip
    """Write a whole checkpoint folder and return it. More than one shard comes with an index file, as released."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settings = config(
        kv_heads=kv_heads, tied=tied, layout=layout, dtype=dtype, vocab=vocab, rope_scaling=rope_scaling
    )  # fmt: skip
    weights = {name: tensor.to(getattr(torch, dtype)) for name, tensor in tensors(settings, seed).items()}
    if layout == "nested":
        weights = {_nested_name(name): tensor for name, tensor in weights.items()}
    _write_json(folder / "config.json", settings)
    _write_json(folder / "generation_config.json", _generation_config())
    _write_json(folder / "preprocessor_config.json", _preprocessor_config())
    _write_weights(folder, weights, num_shards)
    if tokenizer:
        (folder / "tokenizer.json").write_text(tokenizer_json(), encoding="utf-8")
        _write_json(folder / "tokenizer_config.json", _tokenizer_config())
    return folder


def _nested_name(name: str) -> str:
    if name.startswith("visual."):
        return f"model.{name}"
    return name.replace("model.", "model.language_model.", 1)


def _write_weights(folder: Path, weights: dict[str, torch.Tensor], num_shards: int) -> None:
    if num_shards == 1:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = sorted(weights)
    weight_map = {}
    for shard in range(num_shards):
        file = f"model-{shard + 1:05d}-of-{num_shards:05d}.safetensors"
        part = {name: weights[name] for name in names[shard::num_shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    _write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _generation_config() -> dict[str, Any]:
    ids = token_ids()
    return {
        "bos_token_id": ids["<|endoftext|>"], "pad_token_id": ids["<|endoftext|>"],
        "eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]],
        "do_sample": True, "temperature": 1e-06, "repetition_penalty": 1.05,
    }  # fmt: skip


def _preprocessor_config() -> dict[str, Any]:
    return {
        "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor",
        "min_pixels": MIN_PIXELS, "max_pixels": MAX_PIXELS, "patch_size": 14, "temporal_patch_size": 2,
        "merge_size": 2, "image_mean": list(IMAGE_MEAN), "image_std": list(IMAGE_STD),
    }  # fmt: skip


def _tokenizer_config() -> dict[str, Any]:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": False, "errors": "replace",
        "added_tokens_decoder": {str(token_id): {"content": name, **flags} for name, token_id in token_ids().items()},
        "additional_special_tokens": list(SPECIAL[1:]), "bos_token": None, "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>", "unk_token": None, "clean_up_tokenization_spaces": False,
        "model_max_length": MAX_POSITIONS, "chat_template": CHAT_TEMPLATE,
    }  # fmt: skip
