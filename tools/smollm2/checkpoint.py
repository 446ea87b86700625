"""The checkpoint folder: an `InternVLChatModel` in original names whose language model is SmolLM2-135M-Instruct.

The package holds its weights in four bits (Q4_1); here they are what those bits stand for.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from tools.smollm2.language import LanguageFile, Vocabulary
from tools.smollm2.tokenizer import make_tokenizer, tokenizer_config
from tools.smollm2.vision import TILE, vision_config, vision_weights

_MEAN, _STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
_EMBEDDING = "model.embed_tokens.weight"


def write_checkpoint(folder: Path, gguf: Path) -> Path:
    """Write a new `folder`, weights in bfloat16, and return it; it appears whole or not at all.

    Raises `ValueError` where `gguf` is no such file, `OSError` where files cannot be read or written.
    """
    source = LanguageFile(gguf)
    vocabulary, language = source.vocabulary(), source.config()
    tokenizer = make_tokenizer(vocabulary)
    language["vocab_size"] = tokenizer.get_vocab_size()
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        save_file(_weights(source, language["vocab_size"]), staging / "model.safetensors", metadata={"format": "pt"})
        tokenizer.save(str(staging / "tokenizer.json"))
        for name, document in _documents(language, vocabulary, tokenizer).items():
            (staging / name).write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        for path in staging.iterdir():
            path.chmod(0o644)
        staging.chmod(0o755)
        staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def _weights(source: LanguageFile, vocab_size: int) -> dict[str, Tensor]:
    language = source.weights()
    known = language[_EMBEDDING]
    # New tokens lie in the middle of the old ones: the head is tied, and from there none of them is ever the likeliest.
    new = known.mean(0, keepdim=True).expand(vocab_size - len(known), -1)
    language[_EMBEDDING] = torch.cat((known, new))
    weights = {**{f"language_model.{name}": each for name, each in language.items()}, **vision_weights(known)}
    return {name: each.to(torch.bfloat16).contiguous() for name, each in weights.items()}


def _documents(language: dict[str, Any], vocabulary: Vocabulary, tokenizer: Tokenizer) -> dict[str, dict[str, Any]]:
    return {
        "config.json": {
            "architectures": ["InternVLChatModel"],
            "model_type": "internvl_chat",
            "downsample_ratio": 0.5,
            "dynamic_image_size": True,
            "force_image_size": TILE,
            "img_context_token_id": tokenizer.token_to_id("<IMG_CONTEXT>"),
            "llm_config": {**language, "torch_dtype": "bfloat16"},
            "max_dynamic_patch": 12,
            "min_dynamic_patch": 1,
            "pad2square": False,
            "ps_version": "v2",
            "select_layer": -1,
            "template": "internvl2_5",
            "tie_word_embeddings": language["tie_word_embeddings"],
            "torch_dtype": "bfloat16",
            "use_thumbnail": True,
            "vision_config": {**vision_config(), "torch_dtype": "bfloat16"},
        },
        "generation_config.json": {"bos_token_id": vocabulary.bos_id, "eos_token_id": vocabulary.eos_id},
        "preprocessor_config.json": {
            "image_processor_type": "CLIPImageProcessor",
            "crop_size": TILE,
            "do_center_crop": True,
            "do_normalize": True,
            "do_resize": True,
            "image_mean": _MEAN,
            "image_std": _STD,
            "resample": 3,
            "size": TILE,
        },
        "tokenizer_config.json": tokenizer_config(vocabulary, language["max_position_embeddings"]),
    }
