"""Plain checkpoints rounded to int8 and int4 while they are loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests import tiny
from tests.oracle import Runner, load_ours, load_processor, make_sample
from trifocal.kernels.base import TORCH
from trifocal.layers.linear import PLAIN, Linear
from trifocal.llm import LLM
from trifocal.model_spec import ModelSpec, Quantization
from trifocal.models.base import Model
from trifocal.models.loader import load_model
from trifocal.quant.int4 import Int4Linear, round_to_int4, weight_of
from trifocal.quant.int8 import INT8
from trifocal.sampling_params import SamplingParams

DEMO = Path(__file__).parents[2] / "trifocal" / "demo" / "model"


def load(folder: Path, method: str, *, load_format: str = "auto", seed: int = 0) -> Model:
    return load_model(
        ModelSpec.from_checkpoint(str(folder)), dtype=torch.float32, device=torch.device("cpu"),
        load_format=load_format, seed=seed, quantization=Quantization(method),
    )  # fmt: skip


def formats(model: Model) -> dict[str, object]:
    return {path: layer.method for path, layer in model.named_modules() if isinstance(layer, Linear)}


@pytest.mark.parametrize("tied", [True, False])
def test_which_layers(tmp_path: Path, tied: bool) -> None:
    """The language model's, the head in int8 at least; a table that is only looked up stays plain. So does the tower in
    int4; in int8 it computes in int8, too."""
    folder = tiny.write_checkpoint(tmp_path, tied=tied)
    for method in ("int8", "int4"):
        for path, chosen in formats(load(folder, method)).items():
            if path.startswith("visual"):
                assert chosen is (INT8 if method == "int8" else PLAIN), path
            elif path.endswith("embed_tokens"):
                assert chosen is (INT8 if tied else PLAIN), path
            elif path.endswith("lm_head") or method == "int8":
                assert chosen is INT8, path
            else:
                assert isinstance(chosen, Int4Linear)
                assert chosen.group == (128 if "down_proj" in path else 64), path


def test_layers_that_no_group_divides_get_int8() -> None:
    from trifocal.quant.choose import _rounded

    choose = _rounded(is_int4=True, is_tied=True)
    assert choose("mlp.down_proj", Linear(48, 8, bias=False)) is INT8
    method = choose("mlp.down_proj", Linear(96, 8, bias=False))
    assert isinstance(method, Int4Linear) and method.group == 32


@pytest.mark.parametrize(("method", "tolerance"), [("int8", 0.1), ("int4", 0.8)])
def test_logits_stay_close(tmp_path: Path, method: str, tolerance: float) -> None:
    """Random weights of a large scale are the worst case; a real model loses far less."""
    folder = tiny.write_checkpoint(tmp_path, tied=False)
    sample = make_sample(load_processor(folder), "image")
    exact, ours = (Runner(model).logits([sample])[0] for model in (load_ours(folder), load(folder, method)))
    error = float((ours - exact).square().mean().sqrt() / exact.square().mean().sqrt())
    assert tolerance / 20 < error < tolerance


def test_int8_weights_are_the_nearest(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path, tied=False)
    plain, ours = load_ours(folder).state_dict(), load(folder, "int8").state_dict()
    name = "language_model.layers.0.self_attn.qkv_proj"
    weight, scale = ours[f"{name}.weight"].float(), ours[f"{name}.scale"]
    assert ours[f"{name}.weight"].dtype == torch.int8 and weight.abs().amax(1).eq(127).all()
    assert ((weight * scale[:, None] - plain[f"{name}.weight"]).abs() <= scale[:, None] * 0.5001).all()
    assert torch.equal(ours[f"{name}.bias"], plain[f"{name}.bias"])


def test_int4_weights_are_the_nearest(tmp_path: Path) -> None:
    """Within half a step, or a whole one at the ends of a range: the zero is rounded too."""
    folder = tiny.write_checkpoint(tmp_path, tied=False)
    path = "language_model.layers.1.mlp.down_proj"
    layer, plain = load(folder, "int4").get_submodule(path), load_ours(folder).get_submodule(path)
    assert isinstance(layer, Linear)
    q, scale, _ = weight_of(layer).unpack()
    assert q.shape == plain.weight.shape and q.max() == 15 and q.min() == 0
    error = (TORCH.expand_int4(weight_of(layer), torch.float32) - plain.weight).abs()
    assert (error.unflatten(1, (scale.shape[1], -1)) <= scale.float()[..., None]).all()
    assert float(error.mean()) < 0.3 * float(scale.float().mean())


def test_int4_of_odd_groups() -> None:
    """Constant, one-sided and empty groups are kept as well as any."""
    rows = torch.tensor([[0.0] * 32, [3.0] * 32, [-2.0] * 32, [1.0] * 31 + [2.0]])
    q, scale, zero = round_to_int4(rows, 32)
    wide = (q.float() - zero.float()) * scale.float()
    torch.testing.assert_close(wide, rows, rtol=0.01, atol=0.07)


@pytest.mark.parametrize("method", ["int8", "int4"])
def test_dummy_weights(tmp_path: Path, method: str) -> None:
    folder = tiny.write_checkpoint(tmp_path)
    (folder / "model.safetensors").unlink()
    one, same, other = (load(folder, method, load_format="dummy", seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    name = "language_model.layers.0.mlp.down_proj.weight"
    assert not torch.equal(one[name], other[name])


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_built_in_model_in_int8(dtype: str) -> None:
    """The same short answers as in full precision."""
    prompts = [f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n" for text in ("Hello", "Who are you?")]
    params = SamplingParams(temperature=0, max_tokens=24)
    answers = []
    for quantization in (None, "int8"):
        with LLM(str(DEMO), dtype=dtype, quantization=quantization) as llm:
            answers.append([out.outputs[0].text for out in llm.generate(prompts, params, use_tqdm=False)])
    assert answers[0] == answers[1]
