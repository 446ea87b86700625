"""What the decoders refuse; their numbers are compared in test_parity, LongRoPE's changeover in test_longrope."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests import tiny_text as tiny
from tests.oracle import load_ours
from trifocal.errors import ConfigError
from trifocal.model_spec import ModelSpec, rope_config
from trifocal.models.gemma3 import Gemma3Decoder
from trifocal.models.granite import GraniteDecoder
from trifocal.models.internlm2 import InternLM2Decoder
from trifocal.models.llama import LlamaDecoder
from trifocal.models.phi3 import Phi3Decoder
from trifocal.models.qwen2 import Qwen2Decoder
from trifocal.models.qwen3 import Qwen3Decoder

WINDOWS = {"use_sliding_window": True, "sliding_window": 8}


@pytest.mark.parametrize(
    ("text", "decoder", "change", "message"),
    [
        ("llama", LlamaDecoder, {"attention_bias": True}, "attention_bias in a Llama decoder"),
        ("internlm2", InternLM2Decoder, {"bias": True}, "bias in a Llama decoder"),
        ("phi3", Phi3Decoder, {"sliding_window": "wide"}, "sliding_window must be an integer of at least 1"),
        ("qwen2", Qwen2Decoder, WINDOWS | {"layer_types": ["full_attention"]}, "layer_types must be a list of 2 words"),
        ("qwen2", Qwen2Decoder, WINDOWS | {"max_window_layers": "all"}, "max_window_layers must be an integer"),
        ("llama", LlamaDecoder, {"hidden_act": "relu"}, "hidden_act .relu. is not supported"),
        ("gemma3", Gemma3Decoder, {"final_logit_softcapping": 30.0}, "final_logit_softcapping in a Gemma 3 decoder"),
        ("gemma3", Gemma3Decoder, {"hidden_activation": "relu"}, "hidden_act .relu. is not supported"),
        ("granite", GraniteDecoder, {"mlp_bias": True}, "mlp_bias in a Granite decoder"),
        ("qwen3", Qwen3Decoder, {"attention_bias": True}, "attention_bias in a Qwen3 decoder"),
        ("phi3", Phi3Decoder, {"partial_rotary_factor": 0.75}, "partial_rotary_factor"),
    ],
)
def test_refusals(tmp_path: Path, text: tiny.Text, decoder: Any, change: dict[str, Any], message: str) -> None:
    folder = tiny.write_checkpoint(tmp_path, text)
    settings = json.loads((folder / "config.json").read_text())
    settings |= change
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match=message):
        decoder(ModelSpec.from_checkpoint(str(folder)).text)


@pytest.mark.parametrize(("text", "fused"), [("internlm2", "attention.wqkv"), ("phi3", "mlp.gate_up_proj")])
def test_fused_tensor_of_another_shape(tmp_path: Path, text: tiny.Text, fused: str) -> None:
    folder = tiny.write_checkpoint(tmp_path, text)
    weights = load_file(folder / "model.safetensors")
    name = f"model.layers.1.{fused}.weight"
    save_file({**weights, name: weights[name][1:].contiguous()}, folder / "model.safetensors")
    with pytest.raises(ConfigError, match=r"tensor \S+ has \d+ rows") as caught:
        load_ours(folder)
    assert fused.rpartition(".")[2] in str(caught.value) and "\n" not in str(caught.value)


def test_older_name_of_longrope() -> None:
    """Phi-3's first files: `su`, and no factor, which is the ratio of the two contexts."""
    rope = rope_config(
        {"max_position_embeddings": 131072, "original_max_position_embeddings": 4096, "rope_scaling": {"type": "su"}}
    )
    assert (rope.kind, rope.factor, rope.original_max_position_embeddings) == ("longrope", 32.0, 4096)
