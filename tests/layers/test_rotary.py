"""Rotary embedding against transformers' formulas and golden values."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from trifocal.errors import ConfigError
from trifocal.layers.rotary import RotaryEmbedding, Rotate, inverse_frequencies, long_rows
from trifocal.model_spec import RopeConfig, rope_config

HEAD_DIM, MAX_POSITIONS = 64, 512
SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 3.0},
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256},
    "yarn-options": {
        "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 128, "beta_fast": 16, "beta_slow": 2,
        "mscale": 1.0, "mscale_all_dim": 0.5,
    },
    "yarn-untruncated": {
        "rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 256, "truncate": False,
        "attention_factor": 1.25,
    },
    "longrope": {
        "rope_type": "longrope", "original_max_position_embeddings": 128,
        "short_factor": [1 + index / 40 for index in range(HEAD_DIM // 2)],
        "long_factor": [1 + index / 3 for index in range(HEAD_DIM // 2)],
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SCALINGS)
def test_scaled_frequencies(name: str) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    text = {"rope_theta": 1e4, "rope_scaling": SCALINGS[name], "max_position_embeddings": MAX_POSITIONS}
    config = LlamaConfig(
        hidden_size=4 * HEAD_DIM,
        num_attention_heads=4,
        max_position_embeddings=MAX_POSITIONS,
        rope_parameters={**SCALINGS[name], "rope_theta": 1e4},
    )
    for length in (128, 129):
        reference, reference_factor = ROPE_INIT_FUNCTIONS[SCALINGS[name]["rope_type"]](config, seq_len=length)
        ours, factor = inverse_frequencies(rope_config(text), HEAD_DIM, is_long=length > 128)
        torch.testing.assert_close(ours, reference, rtol=1e-6, atol=0)
        assert factor == pytest.approx(reference_factor)


def test_yarn_of_long_context_qwen() -> None:
    """Golden values of Qwen2.5-VL at 128K: head_dim 128, theta 1e6, 32768 tokens times 4."""
    rope = RopeConfig(theta=1e6, kind="yarn", factor=4.0, original_max_position_embeddings=32768)
    ours, factor = inverse_frequencies(rope, 128)
    golden = [1, 0.115478, 0.0133352, 0.00106436, 4.44570e-5, 3.10234e-7]
    torch.testing.assert_close(ours[[0, 10, 20, 30, 40, 63]], torch.tensor(golden), rtol=1e-5, atol=0)
    assert factor == pytest.approx(1.13863, abs=1e-5)


def test_dynamic_is_plain_within_the_original_context_and_the_reference_at_its_last_token() -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {"rope_type": "dynamic", "factor": 2.0}
    rope = rope_config({"rope_theta": 1e4, "rope_scaling": scaling, "max_position_embeddings": 100})
    embedding = RotaryEmbedding(rope, HEAD_DIM)
    plain = RotaryEmbedding(RopeConfig(), HEAD_DIM)
    inside = torch.arange(100)[None]
    assert torch.equal(embedding(inside, torch.float32)[0], plain(inside, torch.float32)[0])
    config = LlamaConfig(
        hidden_size=4 * HEAD_DIM,
        num_attention_heads=4,
        max_position_embeddings=100,
        rope_parameters={**scaling, "rope_theta": 1e4},
    )
    reference, _ = ROPE_INIT_FUNCTIONS["dynamic"](config, seq_len=151)
    cos, sin = embedding(torch.tensor([[3, 150]]), torch.float32)
    torch.testing.assert_close(cos[1, 0], (150 * reference).cos(), rtol=0, atol=1e-4)
    torch.testing.assert_close(sin[1, 0], (150 * reference).sin(), rtol=0, atol=1e-4)
    assert torch.equal(cos[0], plain(torch.tensor([[3]]), torch.float32)[0][0])


def test_longrope_goes_by_the_sequence_of_each_token() -> None:
    text = {"rope_theta": 1e4, "rope_scaling": SCALINGS["longrope"], "max_position_embeddings": MAX_POSITIONS}
    rope = rope_config(text)
    assert rope.short_context == 128 and RopeConfig().short_context is None
    embedding, positions = RotaryEmbedding(rope, HEAD_DIM), torch.tensor([[3, 90, 3, 128]])
    mixed = embedding(positions, torch.float32, torch.tensor([False, False, True, True]))
    short, long = (inverse_frequencies(rope, HEAD_DIM, is_long=is_long)[0] for is_long in (False, True))
    angles = positions[0, :, None] * torch.stack([short, short, long, long])
    factor = (1 + math.log(4) / math.log(128)) ** 0.5
    assert torch.equal(mixed[0][:, 0], angles.cos() * factor) and torch.equal(mixed[1][:, 0], angles.sin() * factor)
    for part, alone in zip(mixed, embedding(positions[:, :2], torch.float32), strict=True):
        assert torch.equal(part[:2], alone)
    assert long_rows(rope, [128, 2, 129]).tolist() == [False] * 130 + [True] * 129
    assert long_rows(RopeConfig(), [3]) is None


def test_sections_take_their_own_axis() -> None:
    rope = RopeConfig(mrope_section=(2, 3, 3))
    positions = torch.tensor([[5], [7], [11]])
    cos, _ = RotaryEmbedding(rope, 16)(positions, torch.float32)
    axes = torch.tensor([5.0] * 2 + [7.0] * 3 + [11.0] * 3)
    assert torch.equal(cos[0, 0], (axes * inverse_frequencies(rope, 16)[0]).cos())


def test_equal_axes_are_plain_rope() -> None:
    positions = torch.arange(9)
    three = RotaryEmbedding(RopeConfig(mrope_section=(2, 3, 3)), 16)(positions.expand(3, -1), torch.bfloat16)
    one = RotaryEmbedding(RopeConfig(), 16)(positions[None], torch.bfloat16)
    assert torch.equal(three[0], one[0]) and torch.equal(three[1], one[1])
    assert one[0].dtype == torch.bfloat16


def test_rotate_is_a_rotation_by_halves() -> None:
    x = torch.randn(4, 3, 16)
    cos, sin = RotaryEmbedding(RopeConfig(), 16)(torch.arange(4)[None], torch.float32)
    full = torch.cat([cos, cos], -1), torch.cat([sin, sin], -1)
    swapped = torch.cat([-x[..., 8:], x[..., :8]], -1)
    assert torch.equal(Rotate()(x, cos, sin), x * full[0] + swapped * full[1])


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="mrope_section"):
        RotaryEmbedding(RopeConfig(mrope_section=(2, 3, 4)), 16)
    with pytest.raises(ConfigError, match="short_factor must be a list of 8"):
        RotaryEmbedding(RopeConfig(kind="longrope", original_max_position_embeddings=8), 16)
    factors = {"short_factor": [1.0] * 8, "long_factor": [1.0] * 8}
    for bad in ([1.0] * 7, [1.0] * 7 + ["2"], [1.0] * 7 + [0], [1.0] * 7 + [math.nan], None):
        for name in factors:
            rope = RopeConfig(kind="longrope", original_max_position_embeddings=8, extra={**factors, name: bad})
            with pytest.raises(ConfigError, match=f"{name} must be a list of 8 numbers above 0"):
                RotaryEmbedding(rope, 16)
    with pytest.raises(ConfigError, match="low_freq_factor"):
        RotaryEmbedding(RopeConfig(kind="llama3", factor=8.0, original_max_position_embeddings=8), 16)
