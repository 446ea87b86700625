"""The language model in a GGUF file of the llama architecture, as transformers would have written it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader, ReaderTensor, TokenType, dequantize
from torch import Tensor

_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclass(frozen=True)
class Vocabulary:
    """A byte-level BPE: tokens by id, merges by rank, ids of control tokens, the chat template."""

    tokens: list[str]
    merges: list[tuple[str, str]]
    control_ids: list[int]
    bos_id: int
    eos_id: int
    pad_id: int
    unk_id: int
    chat_template: str


class LanguageFile:
    """A GGUF file. Raises `ValueError` where it is not one, or not of this kind."""

    def __init__(self, path: Path) -> None:
        try:
            self._reader = GGUFReader(path)
        except (ValueError, IndexError) as error:
            raise ValueError(f"{path} is not a readable GGUF file: {error}") from None
        self._expect("general.architecture", "llama")
        self._expect("tokenizer.ggml.model", "gpt2")
        self._expect("tokenizer.ggml.pre", "smollm")

    def config(self) -> dict[str, Any]:
        """config.json of a `LlamaForCausalLM`; the head is tied where the file holds none."""
        heads = int(self._field("llama.attention.head_count"))
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "hidden_size": int(self._field("llama.embedding_length")),
            "intermediate_size": int(self._field("llama.feed_forward_length")),
            "num_hidden_layers": int(self._field("llama.block_count")),
            "num_attention_heads": heads,
            "num_key_value_heads": int(self._field("llama.attention.head_count_kv")),
            "max_position_embeddings": int(self._field("llama.context_length")),
            "rms_norm_eps": float(f"{self._field('llama.attention.layer_norm_rms_epsilon'):.6g}"),  # kept as float32
            "rope_theta": float(self._field("llama.rope.freq_base")),
            "vocab_size": int(self._field("llama.vocab_size")),
            "tie_word_embeddings": not any(tensor.name == "output.weight" for tensor in self._reader.tensors),
            "attention_bias": False,
            "mlp_bias": False,
            "bos_token_id": int(self._field("tokenizer.ggml.bos_token_id")),
            "eos_token_id": int(self._field("tokenizer.ggml.eos_token_id")),
            "pad_token_id": int(self._field("tokenizer.ggml.padding_token_id")),
        }

    def weights(self) -> dict[str, Tensor]:
        """Name -> float32 weight, dequantized."""
        config = self.config()
        heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
        weights = {}
        for tensor in self._reader.tensors:
            kind = tensor.name.split(".")[-2]
            values = _values(tensor)
            weights[_rename(tensor.name)] = _unpermute(values, heads[kind]) if kind in heads else values
        return weights

    def vocabulary(self) -> Vocabulary:
        """What the tokenizer is made of."""
        types = self._field("tokenizer.ggml.token_type")
        merges = [tuple(merge.split(" ")) for merge in self._field("tokenizer.ggml.merges")]
        return Vocabulary(
            tokens=self._field("tokenizer.ggml.tokens"),
            merges=[(first, second) for first, second in merges],
            control_ids=[token_id for token_id, kind in enumerate(types) if kind == TokenType.CONTROL],
            bos_id=int(self._field("tokenizer.ggml.bos_token_id")),
            eos_id=int(self._field("tokenizer.ggml.eos_token_id")),
            pad_id=int(self._field("tokenizer.ggml.padding_token_id")),
            unk_id=int(self._field("tokenizer.ggml.unknown_token_id")),
            chat_template=self._field("tokenizer.chat_template"),
        )

    def _field(self, name: str) -> Any:
        field = self._reader.get_field(name)
        if field is None:
            raise ValueError(f"the GGUF file has no field {name}")
        return field.contents()

    def _expect(self, name: str, value: str) -> None:
        if self._field(name) != value:
            raise ValueError(f"the GGUF file says {name} {self._field(name)!r}; {value!r} is what is read here")


def _rename(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
    *where, kind, parameter = name.split(".")
    known = _LAYER_NAMES if where else _NAMES
    if kind not in known or (where and where[0] != "blk"):
        raise ValueError(f"the GGUF file holds a tensor {name}, which a plain Llama does not have")
    prefix = f"model.layers.{where[1]}." if where else ""
    return f"{prefix}{known[kind]}.{parameter}"


def _values(tensor: ReaderTensor) -> Tensor:
    """float32 in torch's order of axes: [out, in] or [n]."""
    return torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())


def _unpermute(weight: Tensor, num_heads: int) -> Tensor:
    """llama.cpp turns neighbouring rows of a head, transformers a row of its first half with one of its second."""
    rows, columns = weight.shape
    return weight.view(num_heads, rows // num_heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)
