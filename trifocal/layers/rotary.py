"""Rotary position embedding of text layers: its frequencies under every scaling rule, and its application.

Formulas as in transformers `modeling_rope_utils.py` (linear, dynamic NTK, YaRN, llama3, LongRoPE). Angles, cosines and
sines are float32 and cast to the activation dtype at the end; the rotation itself happens in the activation dtype.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trifocal.errors import ConfigError
from trifocal.layers.base import Layer
from trifocal.model_spec import RopeConfig


class RotaryEmbedding(nn.Module):
    """Cosines and sines of a step's positions, computed once and used by every layer.

    With `rope.mrope_section` (T, H, W) the frequencies are cut into three stretches, each turned by its own row of
    positions (not interleaved).
    """

    inv_freq: Tensor
    long_inv_freq: Tensor  # of longrope alone

    def __init__(self, rope: RopeConfig, head_dim: int) -> None:
        super().__init__()
        self.rope = rope
        self.head_dim = head_dim
        inv_freq, self.attention_factor = inverse_frequencies(rope, head_dim)
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        if rope.kind == "longrope":
            long_inv_freq, _ = inverse_frequencies(rope, head_dim, is_long=True)
            self.register_buffer("long_inv_freq", long_inv_freq, persistent=False)
        if rope.mrope_section and sum(rope.mrope_section) != head_dim // 2:
            raise ConfigError(
                f"config.json: mrope_section {list(rope.mrope_section)} must add up to half of head_dim {head_dim}"
            )

    def forward(
        self, positions: Tensor, dtype: torch.dtype, is_long: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """positions int64 [rows, n] -> cos and sin, each [n, 1, head_dim / 2] in `dtype`.

        `is_long`, bool [n], marks tokens of sequences that take longrope's long factors; None: there are none.
        """
        angles = positions.float()[..., None] * self._frequencies(positions, is_long)
        if self.rope.mrope_section:
            stretches = torch.split(angles, list(self.rope.mrope_section), dim=-1)
            turned = torch.cat([stretch[row] for row, stretch in enumerate(stretches)], dim=-1)
        else:
            turned = angles[0]
        cos, sin = turned.cos() * self.attention_factor, turned.sin() * self.attention_factor
        return cos.to(dtype)[:, None], sin.to(dtype)[:, None]

    def _frequencies(self, positions: Tensor, is_long: Tensor | None) -> Tensor:
        """Those of all tokens, [head_dim / 2], or of each, [n, head_dim / 2].

        Dynamic NTK gives each token the base of a context that ends with it. The reference takes the length of the
        whole batch instead, which would make a token's key depend on its neighbours and on how a prompt is cut into
        chunks. Up to the original context both are plain rope.
        """
        if self.rope.kind == "longrope" and is_long is not None:
            return torch.where(is_long[:, None], self.long_inv_freq, self.inv_freq)
        if self.rope.kind != "dynamic":
            return self.inv_freq
        original = self.rope.original_max_position_embeddings
        assert original is not None, "model_spec gives every scaled rope its original context"
        length = positions.amax(0)[:, None].float() + 1
        stretch = (self.rope.factor * length / original - (self.rope.factor - 1)).clamp(min=1.0)
        exponent = torch.arange(0, self.head_dim, 2, device=positions.device) / (self.head_dim - 2)
        return self.inv_freq / stretch**exponent


def inverse_frequencies(rope: RopeConfig, head_dim: int, *, is_long: bool = False) -> tuple[Tensor, float]:
    """Float32 [head_dim / 2] on the CPU, and the factor on cos and sin (YaRN's and longrope's; 1 otherwise).

    `is_long`: with longrope's long factors.
    """
    # The device is named because models are built under `torch.device("meta")`.
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim
    powers = rope.theta**exponents
    plain = 1.0 / powers
    if rope.kind in ("default", "dynamic"):
        return plain, 1.0
    if rope.kind == "linear":
        return plain / rope.factor, 1.0
    if rope.kind == "llama3":
        return _llama3(plain, rope), 1.0
    if rope.kind == "yarn":
        return _yarn(plain, rope, head_dim), _yarn_attention_factor(rope)
    return _longrope(powers, rope, is_long), _longrope_attention_factor(rope)


def _need(rope: RopeConfig, name: str) -> float:
    value = rope.original_max_position_embeddings if name.startswith("original") else rope.extra.get(name)
    if value is None:
        raise ConfigError(f"config.json: rope_scaling of type {rope.kind} lacks {name}")
    return float(value)


def _llama3(plain: Tensor, rope: RopeConfig) -> Tensor:
    """Keep short wavelengths, divide long ones, blend between (Llama 3.1)."""
    original = _need(rope, "original_max_position_embeddings")
    low, high = _need(rope, "low_freq_factor"), _need(rope, "high_freq_factor")
    wavelength = 2 * math.pi / plain
    keep = ((original / wavelength - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - keep) * plain / rope.factor + keep * plain


def _yarn(plain: Tensor, rope: RopeConfig, head_dim: int) -> Tensor:
    """Blend plain and divided frequencies by how often each one turns within the original context."""
    original = _need(rope, "original_max_position_embeddings")

    def dimension(rotations: float) -> float:
        return head_dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low = dimension(rope.extra.get("beta_fast") or 32)
    high = dimension(rope.extra.get("beta_slow") or 1)
    if rope.extra.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    index = torch.arange(head_dim // 2, dtype=torch.float32, device="cpu")
    divided = ((index - low) / (high - low)).clamp(0.0, 1.0)
    return plain / rope.factor * divided + plain * (1 - divided)


def _yarn_attention_factor(rope: RopeConfig) -> float:
    def mscale(weight: float) -> float:
        return 1.0 if rope.factor <= 1 else 0.1 * weight * math.log(rope.factor) + 1.0

    given = rope.extra.get("attention_factor")
    if given is not None:
        return float(given)
    top, bottom = rope.extra.get("mscale"), rope.extra.get("mscale_all_dim")
    return mscale(top) / mscale(bottom) if top and bottom else mscale(1.0)


def _longrope(powers: Tensor, rope: RopeConfig, is_long: bool) -> Tensor:
    """Wavelengths stretched one by one, by the long factors or by the short ones.

    As in the reference a sequence takes the short ones up to the original context. When it grows past that all its keys
    are worthless: the scheduler has it computed anew (`Scheduler._restart_outgrown`).
    """
    _need(rope, "original_max_position_embeddings")
    name = "long_factor" if is_long else "short_factor"
    factors = rope.extra.get(name)
    given = factors if isinstance(factors, list) else []
    if len(given) != len(powers) or not all(type(each) in (int, float) and 0 < each < math.inf for each in given):
        raise ConfigError(f"config.json: rope_scaling.{name} must be a list of {len(powers)} numbers above 0")
    return 1.0 / (torch.tensor(given, dtype=torch.float32, device="cpu") * powers)


def _longrope_attention_factor(rope: RopeConfig) -> float:
    given = rope.extra.get("attention_factor")
    if given is not None:
        return float(given)
    if rope.factor <= 1:
        return 1.0
    return math.sqrt(1 + math.log(rope.factor) / math.log(_need(rope, "original_max_position_embeddings")))


def long_rows(rope: RopeConfig, lengths: Sequence[int]) -> Tensor | None:
    """`RotaryEmbedding.forward`'s `is_long` for whole sequences of these lengths, one behind the other."""
    if rope.short_context is None:
        return None
    return torch.tensor(lengths).gt(rope.short_context).repeat_interleave(torch.tensor(lengths))


class Rotate(Layer):
    """Turns the halves of each head against each other (NeoX style)."""

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x [n, heads, d], cos and sin [n, 1, d / 2] -> [n, heads, d]."""
        return self.kernels.rotate(x, cos, sin)
