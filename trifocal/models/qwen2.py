"""Qwen2: biases on q, k and v, and in some releases a sliding window on the later layers."""

from __future__ import annotations

from trifocal.attention.base import AttentionSpec
from trifocal.errors import ConfigError
from trifocal.model_spec import TextConfig
from trifocal.models.decoder import Decoder
from trifocal.models.layer_spec import LayerSpec, is_sliding, sliding_window


class Qwen2Decoder(Decoder):
    """The language model of Qwen2 and Qwen2.5 (and of their vision-language forms)."""

    def layer_spec(self, config: TextConfig, index: int) -> LayerSpec:
        return LayerSpec(rope=config.rope, attention=AttentionSpec(window=qwen_window(config, index)), qkv_bias=True)


def qwen_window(config: TextConfig, index: int) -> int | None:
    """The window of layer `index`: those from `max_window_layers` on have one, if `use_sliding_window` is true.

    Most released files carry a window and switch it off. Raises `ConfigError`.
    """
    if not config.extra.get("use_sliding_window"):
        return None
    first = config.extra.get("max_window_layers", 28)  # transformers' default
    if isinstance(first, bool) or not isinstance(first, int):
        raise ConfigError(f"config.json: max_window_layers must be an integer, got {first!r}")
    return sliding_window(config) if is_sliding(config, index, index >= first) else None
