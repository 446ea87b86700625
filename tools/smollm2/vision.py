"""A small InternViT with random weights and the projector behind it, under the names of the original checkpoints.

It has never seen a picture: what the model says about one means nothing, but all code that handles pictures runs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

TILE, PATCH = 224, 14
TOKENS_PER_TILE = (TILE // PATCH // 2) ** 2
_HIDDEN, _INTERMEDIATE, _LAYERS, _HEADS = 64, 128, 2, 2
_SEED = 0


def vision_config() -> dict[str, Any]:
    """`vision_config` of config.json."""
    return {
        "architectures": ["InternVisionModel"],
        "model_type": "intern_vit_6b",  # all sizes are called so
        "hidden_act": "gelu",
        "hidden_size": _HIDDEN,
        "image_size": TILE,
        "intermediate_size": _INTERMEDIATE,
        "layer_norm_eps": 1e-6,
        "norm_type": "layer_norm",
        "num_attention_heads": _HEADS,
        "num_channels": 3,
        "num_hidden_layers": _LAYERS,
        "patch_size": PATCH,
        "qk_normalization": False,
        "qkv_bias": True,
    }


def vision_weights(embeddings: Tensor) -> dict[str, Tensor]:
    """Name -> float32 weight of `vision_model` and `mlp1`; `embeddings` [tokens, hidden_size] are the language model's.

    Pictures come out about as large as tokens do: far larger ones would drown the text around them.
    """
    random = _Random(_SEED)
    hidden_size = embeddings.shape[1]
    weights = {
        "vision_model.embeddings.class_embedding": random.normal(1, 1, _HIDDEN, scale=0.1),
        "vision_model.embeddings.position_embedding": random.normal(1, (TILE // PATCH) ** 2 + 1, _HIDDEN, scale=0.1),
        "vision_model.embeddings.patch_embedding.weight": random.normal(
            _HIDDEN, 3, PATCH, PATCH, scale=(3 * PATCH**2) ** -0.5
        ),
        "vision_model.embeddings.patch_embedding.bias": random.normal(_HIDDEN, scale=0.1),
        **random.norm("mlp1.0", 4 * _HIDDEN),
        **random.linear("mlp1.1", 4 * _HIDDEN, hidden_size),
        **random.linear("mlp1.3", hidden_size, hidden_size),
    }
    for index in range(_LAYERS):
        layer = f"vision_model.encoder.layers.{index}"
        weights |= {
            f"{layer}.ls1": random.around_one(_HIDDEN),
            f"{layer}.ls2": random.around_one(_HIDDEN),
            **random.norm(f"{layer}.norm1", _HIDDEN),
            **random.norm(f"{layer}.norm2", _HIDDEN),
            **random.linear(f"{layer}.attn.qkv", _HIDDEN, 3 * _HIDDEN),
            **random.linear(f"{layer}.attn.proj", _HIDDEN, _HIDDEN),
            **random.linear(f"{layer}.mlp.fc1", _HIDDEN, _INTERMEDIATE),
            **random.linear(f"{layer}.mlp.fc2", _INTERMEDIATE, _HIDDEN),
        }
    for name in ("mlp1.3.weight", "mlp1.3.bias"):
        weights[name] = weights[name] * embeddings.std()
    return weights


class _Random:
    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, scale: float) -> Tensor:
        return torch.randn(shape, generator=self._generator) * scale

    def around_one(self, size: int) -> Tensor:
        return 1 + self.normal(size, scale=0.1)

    def norm(self, name: str, size: int) -> dict[str, Tensor]:
        return {f"{name}.weight": self.around_one(size), f"{name}.bias": self.normal(size, scale=0.1)}

    def linear(self, name: str, inputs: int, outputs: int) -> dict[str, Tensor]:
        weight = self.normal(outputs, inputs, scale=inputs**-0.5)
        return {f"{name}.weight": weight, f"{name}.bias": self.normal(outputs, scale=0.1)}
