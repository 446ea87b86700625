"""Tiny random language models of every architecture, alone; those behind InternVL's towers are made of the same parts.

Weights are large and norms random, so that a missing or misplaced tensor changes the answer. Written without
transformers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import save_file

from tests import tiny

Text = Literal["qwen2", "qwen3", "llama", "internlm2", "phi3", "mistral", "minicpm", "granite", "gemma3"]

HIDDEN, INTERMEDIATE, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 64, 96, 2, 4, 2, 16
VOCAB, MAX_POSITIONS, LONGROPE_ORIGINAL = 400, 2048, 32
SCALES = {"scale_emb": 3.0, "scale_depth": 1.4, "dim_model_base": 32}  # of MiniCPM
_CLASSES: dict[Text, str] = {
    "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM",
    "internlm2": "InternLM2ForCausalLM", "phi3": "Phi3ForCausalLM", "mistral": "MistralForCausalLM",
    "minicpm": "MiniCPMForCausalLM", "granite": "GraniteForCausalLM", "gemma3": "Gemma3ForCausalLM",
}  # fmt: skip
# Of the released Qwen2.5-based models: strings only.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def text_config(text: Text, *, tied: bool = False, **changes: Any) -> dict[str, Any]:
    """config.json of the language model, or its part of one; `changes` are fields of it."""
    settings: dict[str, Any] = {
        "architectures": [_CLASSES[text]], "model_type": text, "hidden_act": "silu", "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "rms_norm_eps": 1e-5, "vocab_size": VOCAB, "rope_theta": 10000.0,
        "max_position_embeddings": MAX_POSITIONS, "tie_word_embeddings": tied, "eos_token_id": 2, "bos_token_id": 1,
        "pad_token_id": None, "head_dim": HEAD_DIM,
    }  # fmt: skip
    if text in ("qwen2", "internlm2"):
        settings["rope_scaling"] = {"type": "dynamic", "factor": 2.0}
    if text == "phi3":
        rng = np.random.default_rng(5)
        factors = {name: rng.uniform(1, 8, HEAD_DIM // 2).tolist() for name in ("short_factor", "long_factor")}
        settings["rope_scaling"] = {"type": "longrope", **factors}
        settings["original_max_position_embeddings"] = LONGROPE_ORIGINAL
        settings["sliding_window"] = 262144
    if text == "minicpm":
        settings |= SCALES
    if text == "gemma3":  # as in the released files, which do not name hidden_act
        settings |= {
            "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 24, "rope_local_base_freq": 5000.0,
            "rope_scaling": {"rope_type": "linear", "factor": 4.0}, "sliding_window": 10, "sliding_window_pattern": 2,
            "attn_logit_softcapping": None, "final_logit_softcapping": None, "rope_theta": 1000000.0,
        }  # fmt: skip
        del settings["hidden_act"]
    return settings | changes


def text_shapes(text: Text, prefix: str, *, tied: bool) -> dict[str, tuple[int, ...]]:
    """Tensors under the names that transformers writes, each behind `prefix`; InternLM2's as a Llama's."""
    width, kv_width = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    shapes: dict[str, tuple[int, ...]] = {
        f"{prefix}model.embed_tokens.weight": (VOCAB, HIDDEN), f"{prefix}model.norm.weight": (HIDDEN,),
    }  # fmt: skip
    for index in range(LAYERS):
        layer = f"{prefix}model.layers.{index}."
        attention = f"{layer}self_attn."
        if text == "phi3":
            shapes[f"{attention}qkv_proj.weight"] = (width + 2 * kv_width, HIDDEN)
            shapes[f"{layer}mlp.gate_up_proj.weight"] = (2 * INTERMEDIATE, HIDDEN)
        else:
            for part, rows in (("q", width), ("k", kv_width), ("v", kv_width)):
                shapes[f"{attention}{part}_proj.weight"] = (rows, HIDDEN)
                if text == "qwen2":
                    shapes[f"{attention}{part}_proj.bias"] = (rows,)
                if text in ("qwen3", "gemma3") and part != "v":
                    shapes[f"{attention}{part}_norm.weight"] = (HEAD_DIM,)
            shapes |= {f"{layer}mlp.{part}_proj.weight": (INTERMEDIATE, HIDDEN) for part in ("gate", "up")}
        shapes[f"{attention}o_proj.weight"] = (HIDDEN, width)
        shapes[f"{layer}mlp.down_proj.weight"] = (HIDDEN, INTERMEDIATE)
        shapes[f"{layer}input_layernorm.weight"] = shapes[f"{layer}post_attention_layernorm.weight"] = (HIDDEN,)
        if text == "gemma3":
            norms = ("pre_feedforward_layernorm", "post_feedforward_layernorm")
            shapes |= {f"{layer}{norm}.weight": (HIDDEN,) for norm in norms}
    if not tied:
        shapes[f"{prefix}lm_head.weight"] = (VOCAB, HIDDEN)
    return shapes


def tensors(text: Text, *, tied: bool = False, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random float32 weights under the names of `text_shapes`."""
    random = np.random.default_rng(seed)
    made = {}
    for name, shape in text_shapes(text, "", tied=tied).items():
        values = random.uniform(0.5, 1.5, shape) if "norm" in name else random.normal(0.0, 0.25, shape)
        made[name] = torch.from_numpy(values.astype(np.float32))
    return made


_INTERNLM2_NAMES = (
    ("embed_tokens", "tok_embeddings"), ("lm_head", "output"), ("self_attn.o_proj", "attention.wo"),
    ("mlp.gate_proj", "feed_forward.w1"), ("mlp.up_proj", "feed_forward.w3"), ("mlp.down_proj", "feed_forward.w2"),
    ("input_layernorm", "attention_norm"), ("post_attention_layernorm", "ffn_norm"),
)  # fmt: skip


def as_internlm2(weights: dict[str, torch.Tensor], prefix: str = "") -> dict[str, torch.Tensor]:
    """A Llama's tensors as InternLM2 keeps and calls them; all names begin with `prefix`."""
    for index in range(LAYERS):
        layer = f"{prefix}model.layers.{index}."
        q, k, v = (
            weights.pop(f"{layer}self_attn.{part}_proj.weight").unflatten(0, (KV_HEADS, -1, HEAD_DIM)) for part in "qkv"
        )
        weights[f"{layer}attention.wqkv.weight"] = torch.cat([q, k, v], dim=1).flatten(0, 2)
    return replaced(weights, _INTERNLM2_NAMES)


def replaced(weights: dict[str, torch.Tensor], names: tuple[tuple[str, str], ...]) -> dict[str, torch.Tensor]:
    """The same tensors with words of their names replaced."""
    done = {}
    for name, tensor in weights.items():
        for old, new in names:
            name = name.replace(old, new)
        done[name] = tensor
    return done


def write_checkpoint(
    folder: str | Path, text: Text = "llama", *, tied: bool = False, seed: int = 0, **changes: Any
) -> Path:  # fmt: skip
    """Write a whole checkpoint folder and return it; `changes` are fields of config.json."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = tensors(text, tied=tied, seed=seed)
    if text == "internlm2":
        weights = as_internlm2(weights)
    save_file({name: each.contiguous() for name, each in weights.items()}, folder / "model.safetensors")
    files = {
        "config.json": {"torch_dtype": "float32", **text_config(text, tied=tied, **changes)},
        "generation_config.json": {"eos_token_id": 2},
        "tokenizer_config.json": {"chat_template": CHAT_TEMPLATE, "eos_token": "<|endoftext|>"},
    }
    for name, data in files.items():
        (folder / name).write_text(json.dumps(data, indent=1, ensure_ascii=False), encoding="utf-8")
    (folder / "tokenizer.json").write_text(tiny.tokenizer_json(), encoding="utf-8")
    return folder
