"""The checkpoint folder in the released Qwen2.5-VL layout: written whole, then renamed file by file."""

from __future__ import annotations

import json
import os
import tempfile
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLConfig

from tools.demo_model.preprocess import MAX_PIXELS, MEAN, MERGE, MIN_PIXELS, PATCH, STD, TEMPORAL
from tools.demo_model.tokenizer import CHAT_TEMPLATE, SPECIAL

MAX_POSITIONS = 4096


def model_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """config.json, flat like the released files. Head size 32 in both towers; sections 4+6+6 of 16 frequencies."""
    ids = {name: tokenizer.token_to_id(name) for name in SPECIAL}
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_token_id": ids["<|vision_pad|>"],
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "hidden_act": "silu",
        "hidden_size": 192,
        "initializer_range": 0.02,
        "intermediate_size": 512,
        "max_position_embeddings": MAX_POSITIONS,
        "max_window_layers": 5,
        "model_type": "qwen2_5_vl",
        "num_attention_heads": 6,
        "num_hidden_layers": 5,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        # Not smaller: a question finds what it is about by content, at frequencies too slow to see distance.
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
        "sliding_window": MAX_POSITIONS,
        "use_sliding_window": False,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": tokenizer.get_vocab_size(),
        "vision_config": {
            "model_type": "qwen2_5_vl",
            "depth": 6,
            "hidden_act": "silu",
            "hidden_size": 128,
            "intermediate_size": 344,
            "num_heads": 4,
            "in_channels": 3,
            "in_chans": 3,
            "out_hidden_size": 192,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "spatial_patch_size": PATCH,
            "temporal_patch_size": TEMPORAL,
            "tokens_per_second": 2,
            "window_size": 112,
            "fullatt_block_indexes": [2, 4, 5],
        },
    }


def new_model(config: dict[str, Any]) -> Qwen2_5_VLForConditionalGeneration:
    """A fresh model; the flat dictionary takes the same way into transformers as a released config.json.

    Copied, because transformers rewrites the nested dictionaries it is given. In float32 whatever the config says: a
    weight in bfloat16 swallows the small steps of training.
    """
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_dict(deepcopy(config))).float()


def _image_processor() -> dict[str, Any]:
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
        "min_pixels": MIN_PIXELS,
        "max_pixels": MAX_PIXELS,
        "patch_size": PATCH,
        "temporal_patch_size": TEMPORAL,
        "merge_size": MERGE,
        "image_mean": [round(float(v), 8) for v in MEAN],
        "image_std": [round(float(v), 8) for v in STD],
    }


def _tokenizer_config(tokenizer: Tokenizer) -> dict[str, Any]:
    added = {
        str(tokenizer.token_to_id(name)): {
            "content": name, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
            "special": True,
        }
        for name in SPECIAL
    }  # fmt: skip
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": list(SPECIAL[1:]),
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": MAX_POSITIONS,
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "chat_template": CHAT_TEMPLATE,
    }


def original_tensors(model: Qwen2_5_VLForConditionalGeneration, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The weights under the released names: `visual.*`, `model.*`; the tied head is left out."""
    renamed = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        name = name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")
        renamed[name] = tensor.detach().to(dtype).contiguous().clone()
    return renamed


def write_folder(folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any], tokenizer: Tokenizer) -> None:
    """Write all files beside the folder first and rename them in, so that a reader never sees half a file."""
    folder.mkdir(parents=True, exist_ok=True)
    end, start = tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")
    processor = _image_processor()
    documents: dict[str, Any] = {
        "config.json": config,
        "generation_config.json": {
            "bos_token_id": start, "pad_token_id": start, "eos_token_id": [end, start], "do_sample": False,
        },
        "preprocessor_config.json": processor,
        "video_preprocessor_config.json": {
            **{key: value for key, value in processor.items() if key != "image_processor_type"},
            "video_processor_type": "Qwen2VLVideoProcessor",
            "fps": 2.0, "min_frames": 4, "max_frames": 768,
        },
        "tokenizer_config.json": _tokenizer_config(tokenizer),
    }  # fmt: skip
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        staging = Path(name)
        for file, document in documents.items():
            (staging / file).write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        tokenizer.save(str(staging / "tokenizer.json"))
        save_file(tensors, staging / "model.safetensors", metadata={"format": "pt"})
        for path in sorted(staging.iterdir()):
            path.chmod(0o644)
            os.replace(path, folder / path.name)
