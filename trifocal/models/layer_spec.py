"""`LayerSpec`: what a decoder layer is made of. Each architecture writes one for each of its layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from trifocal.attention.base import FULL, AttentionSpec
from trifocal.distributed import Group
from trifocal.errors import ConfigError
from trifocal.layers.mlp import GatedMLP
from trifocal.layers.norm import RMSNorm
from trifocal.model_spec import RopeConfig, TextConfig, positive_int

_KINDS = ("full_attention", "sliding_attention")  # transformers' words in `layer_types`


def gated_mlp(config: TextConfig, group: Group) -> nn.Module:
    """The MLP of Llama and most others, with the activation that config.json names."""
    return GatedMLP(config.hidden_size, config.intermediate_size, config.hidden_act, group=group)


@dataclass(frozen=True)
class LayerSpec:
    """One layer: attention and MLP, each behind a norm and beside a residual.

    rope: the rotary embedding of its queries and keys; layers may differ in it.
    qkv_bias: whether q, k and v have biases. qk_norm: whether each head of q and k is normed before it is turned.
    norm: makes a norm of (size, eps). has_output_norms: attention and MLP also have one behind them ("sandwich").
    mlp: makes a module [n, hidden_size] -> [n, hidden_size], shared by the ranks of a group.
    residual_scale: weighs what attention and MLP add to the residual.
    """

    rope: RopeConfig
    attention: AttentionSpec = FULL
    qkv_bias: bool = False
    qk_norm: bool = False
    norm: Callable[[int, float], RMSNorm] = RMSNorm
    has_output_norms: bool = False
    mlp: Callable[[TextConfig, Group], nn.Module] = gated_mlp
    residual_scale: float = 1.0


def sliding_window(config: TextConfig) -> int | None:
    """`sliding_window` of config.json in tokens, None where it is absent or null. Raises `ConfigError`."""
    value = config.extra.get("sliding_window")
    return None if value is None else positive_int(value, "sliding_window")


def is_sliding(config: TextConfig, index: int, default: bool) -> bool:
    """Whether layer `index` has a window, by `layer_types`; `default` counts where config.json has none.

    Raises `ConfigError`.
    """
    types: Any = config.extra.get("layer_types")
    if types is None:
        return default
    if not isinstance(types, list) or len(types) != config.num_layers or any(each not in _KINDS for each in types):
        raise ConfigError(
            f"config.json: layer_types must be a list of {config.num_layers} words, one for each layer, out of "
            f"{' and '.join(_KINDS)}"
        )
    return bool(types[index] == "sliding_attention")
