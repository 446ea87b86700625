"""InternLM2: Llama under other names, with q, k and v in one tensor, grouped by key head."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from trifocal.errors import ConfigError
from trifocal.models.llama import LlamaDecoder

_NAMES = {
    "tok_embeddings": "embed_tokens",
    "output": "lm_head",
    "attention": "self_attn",
    "wo": "o_proj",
    "feed_forward": "mlp",
    "w1": "gate_proj",
    "w3": "up_proj",
    "w2": "down_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


class InternLM2Decoder(LlamaDecoder):
    """The language model of InternLM2 and 2.5."""

    def rename(self, name: str) -> str | None:
        """Our name of a tensor of `InternLM2ForCausalLM`; `wqkv` stays, for `unpack`."""
        return super().rename(".".join(_NAMES.get(word, word) for word in name.split(".")))

    def unpack(self, name: str, tensor: Tensor) -> Iterable[tuple[str, Tensor]]:
        """`wqkv` [(heads + 2 * kv_heads) * head_dim, hidden_size]: for each key head queries, key, value."""
        if not name.endswith(".wqkv.weight"):
            return super().unpack(name, tensor)
        heads, kv_heads, head_dim = self.config.num_heads, self.config.num_kv_heads, self.config.head_dim
        if len(tensor) != (heads + 2 * kv_heads) * head_dim:
            raise ConfigError(f"tensor {name} has {len(tensor)} rows for {heads} heads and {kv_heads} key heads")
        groups = tensor.view(kv_heads, heads // kv_heads + 2, head_dim, -1)
        parts = {"q_proj": groups[:, :-2], "k_proj": groups[:, -2], "v_proj": groups[:, -1]}
        parent = name.removesuffix("wqkv.weight")
        return [(f"{parent}{part}.weight", rows.reshape(-1, tensor.shape[1])) for part, rows in parts.items()]
