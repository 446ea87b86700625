"""AWQ checkpoints: unpacking by the table of the format, and a whole model against the same one in plain weights."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.quantize import load
from tests import tiny, tiny_internvl, tiny_text
from tests.oracle import Runner, load_processor, make_sample
from tests.ranks import on_ranks
from trifocal.config.engine import EngineArgs, resolve
from trifocal.distributed import Group
from trifocal.errors import ConfigError, NotAvailableYetError
from trifocal.kernels.base import TORCH
from trifocal.layers.linear import Linear
from trifocal.llm import LLM
from trifocal.models.loader import _columns, load_model
from trifocal.quant.awq import AwqLinear, pack_awq, unpack_awq
from trifocal.quant.int4 import weight_of
from trifocal.sampling_params import SamplingParams

COLUMN_OF_NIBBLE = (0, 2, 4, 6, 1, 3, 5, 7)  # from the low end of an integer: AutoAWQ's order_map
LANGUAGE = re.compile(r"(?!visual|vision).*layers\..*\.(\w+_proj)\.weight$")
GROUP = 32


def pack(q: Tensor) -> Tensor:
    """int [rows, N] -> int32 [rows, N / 8], written out nibble by nibble."""
    packed = np.zeros((len(q), q.shape[1] // 8), dtype=np.uint32)
    columns = q.numpy().astype(np.uint32)
    for nibble, column in enumerate(COLUMN_OF_NIBBLE):
        packed |= columns[:, column::8] << np.uint32(4 * nibble)
    return torch.from_numpy(packed.view(np.int32))


def quantized(weight: Tensor, group: int) -> tuple[dict[str, Tensor], Tensor]:
    """AWQ's tensors for weight [N, K], and the weight that they stand for, by the format's formula."""
    columns = weight.t().float().view(-1, group, len(weight))  # [K / group, group, N]
    least, most = columns.amin(1), columns.amax(1)
    scale = ((most - least) / 15).half()
    zero = (-least / scale.float()).round().clamp(0, 15)
    q = (columns / scale.float()[:, None] + zero[:, None]).round().clamp(0, 15)
    exact = ((q - zero[:, None]) * scale.float()[:, None]).flatten(0, 1).t().contiguous()
    return {"qweight": pack(q.flatten(0, 1)), "qzeros": pack(zero), "scales": scale}, exact


def write_pair(plain: Path, awq: Path, *, group: int = GROUP, nested: str | None = None, **fields: Any) -> int:
    """Make the checkpoint in `plain` an AWQ one in `awq`, and round its own weights alike; returns how many."""
    awq.mkdir()
    for file in plain.iterdir():
        (awq / file.name).write_bytes(file.read_bytes())
    weights = load_file(plain / "model.safetensors")
    rounded, kept, count = {}, {}, 0
    for name, tensor in weights.items():
        rounded[name] = kept[name] = tensor
        if LANGUAGE.match(name):
            made, exact = quantized(tensor, tensor.shape[1] if group == -1 else group)
            rounded[name] = exact.to(tensor.dtype)
            del kept[name]
            kept |= {f"{name.removesuffix('weight')}{kind}": each.contiguous() for kind, each in made.items()}
            count += 1
    save_file(rounded, plain / "model.safetensors")
    save_file(kept, awq / "model.safetensors")
    config = json.loads((awq / "config.json").read_text())
    settings = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm", **fields}
    (config[nested] if nested else config)["quantization_config"] = settings
    (awq / "config.json").write_text(json.dumps(config))
    return count


def test_golden_integers() -> None:
    """Nibbles 0 .. 7 from the low end are outputs 0 2 4 6 1 3 5 7; the sign bit is a part of the last one."""
    packed = torch.tensor([[0x76543210, -0x01234568]], dtype=torch.int32)  # the second is 0xFEDCBA98
    assert unpack_awq(packed).tolist() == [[0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15]]
    q = torch.randint(0, 16, (6, 40))
    assert torch.equal(unpack_awq(pack(q)).long(), q)
    assert torch.equal(pack_awq(q), pack(q))


@pytest.mark.parametrize("group", [32, 64, -1])
@pytest.mark.parametrize("tied", [True, False])
def test_logits_of_a_model(tmp_path: Path, tied: bool, group: int) -> None:
    plain = tiny.write_checkpoint(tmp_path / "plain", tied=tied)
    assert write_pair(plain, tmp_path / "awq", group=group) == 7 * tiny.LAYERS
    sample = make_sample(load_processor(plain), "image")
    ours, expected = (Runner(load(folder)).logits([sample])[0] for folder in (tmp_path / "awq", plain))
    assert torch.equal(ours, expected)


def test_the_layers_that_have_it_are_kept_packed(tmp_path: Path) -> None:
    plain = tiny.write_checkpoint(tmp_path / "plain")
    write_pair(plain, tmp_path / "awq")
    model = load(tmp_path / "awq")
    packed = [path for path, layer in model.named_modules() if isinstance(layer, Linear) and _is_awq(layer)]
    assert len(packed) == 4 * tiny.LAYERS and all(path.startswith("language_model.layers") for path in packed)


def _is_awq(layer: Linear) -> bool:
    return isinstance(layer.method, AwqLinear)


def test_nested_config_of_internvl(tmp_path: Path) -> None:
    plain = tiny_internvl.write_checkpoint(tmp_path / "plain")
    assert write_pair(plain, tmp_path / "awq", nested="llm_config") == 7 * tiny_text.LAYERS
    ours, expected = load(tmp_path / "awq"), load(plain)
    for path, layer in ours.named_modules():
        if isinstance(layer, Linear):
            other = expected.get_submodule(path)
            weight = TORCH.expand_int4(weight_of(layer), torch.float32) if _is_awq(layer) else layer.weight
            assert torch.equal(weight, other.weight) and _is_awq(layer) == path.startswith("language_model.layers")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"version": "gemv"}, "version is 'gemv'.*only those of version gemm"),
        ({"version": "marlin"}, "version is 'marlin'"),
        ({"bits": 8}, "must have bits 4"),
        ({"zero_point": False}, "zero_point true"),
        ({"group_size": 48}, "group_size 48 does not fit language_model.layers.0.self_attn.qkv_proj with 64 inputs"),
    ],
)
def test_what_is_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    write_pair(tiny.write_checkpoint(tmp_path / "plain"), tmp_path / "awq", **fields)
    with pytest.raises(ConfigError, match=message):
        load(tmp_path / "awq")


def test_ranks_share_packed_weights(tmp_path: Path) -> None:
    """Greedy answers of two ranks are those of one; groups that four would cut are refused by name."""
    write_pair(tiny.write_checkpoint(tmp_path / "plain", tied=False), tmp_path / "awq")
    config = resolve(EngineArgs(model=str(tmp_path / "awq"), device="cpu", dtype="float32"))
    sample = make_sample(load_processor(tmp_path / "plain"), "image")

    def answer(group: Group) -> list[int]:
        model = load_model(
            config.model.spec, dtype=torch.float32, device=torch.device("cpu"), load_format="auto", seed=0,
            quantization=config.model.quantization, group=group,
        )  # fmt: skip
        chosen: list[int] = []
        for _ in range(8):
            logits = Runner(model).logits([sample.followed_by(chosen)])[0][-1]
            chosen.append(int(group.all_reduce(logits.argmax() * (group.rank == 0))))  # rank 0 alone chooses
        return chosen

    [alone] = on_ranks(1, answer)
    assert on_ranks(2, answer) == [alone, alone] and len(set(alone)) > 3
    with pytest.raises(
        ConfigError, match=r"size 4: language_model\.layers\.0\.self_attn\.o_proj has 64 inputs in groups"
    ):
        on_ranks(4, answer)


def test_other_methods_are_refused(tmp_path: Path) -> None:
    write_pair(tiny.write_checkpoint(tmp_path / "plain"), tmp_path / "awq", quant_method="gptq")
    with pytest.raises(NotAvailableYetError, match="quant_method gptq"):
        load(tmp_path / "awq")


def test_a_tensor_of_no_layer_is_refused(tmp_path: Path) -> None:
    write_pair(tiny_internvl.write_checkpoint(tmp_path / "plain"), tmp_path / "awq", nested="llm_config")
    file = tmp_path / "awq" / "model.safetensors"
    weights = load_file(file)
    weights["language_model.model.layers.0.self_attn.wqkv.qweight"] = torch.zeros(64, 16, dtype=torch.int32)
    save_file(weights, file)
    with pytest.raises(ConfigError, match=r"wqkv\.qweight is unknown to InternVL"):
        load(tmp_path / "awq")


def test_heads_that_share_integers_are_refused() -> None:
    """Layers fused by heads of 4: eight outputs of an integer belong to two of them."""
    assert _columns(torch.tensor([*range(8, 16), *range(32, 40)]), 8, "wqkv").tolist() == [1, 4]
    assert _columns(torch.tensor([3, 5]), 1, "wqkv").tolist() == [3, 5]
    for rows in ([0, 1, 2, 3, 12, 13, 14, 15], list(range(4, 12)), [0, 1, 2, 3]):
        with pytest.raises(NotAvailableYetError, match=r"integers hold outputs of several layers \(wqkv\)"):
            _columns(torch.tensor(rows), 8, "wqkv")


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    write_pair(tiny.write_checkpoint(tmp_path / "plain"), tmp_path / "awq")
    file = tmp_path / "awq" / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.1.mlp.up_proj.scales"]
    save_file(weights, file)
    with pytest.raises(ConfigError, match=r"layers\.1\.mlp\.up_proj\.scales is in none"):
        load(tmp_path / "awq")


def test_flags(tmp_path: Path) -> None:
    """The flag may be given or not; others contradict the checkpoint. float16 files compute in bfloat16 on a CPU."""
    write_pair(tiny.write_checkpoint(tmp_path / "plain", dtype="float16"), tmp_path / "awq")
    for flag in (None, "awq"):
        config = resolve(EngineArgs(model=str(tmp_path / "awq"), device="cpu", quantization=flag))
        assert config.model.quantization is not None and config.model.quantization.group_size == GROUP
        assert config.model.dtype == "bfloat16"
    assert resolve(EngineArgs(model=str(tmp_path / "awq"), device="cpu", dtype="float16")).model.dtype == "float16"
    with pytest.raises(ConfigError, match="--quantization int8: the checkpoint is already quantized by awq"):
        resolve(EngineArgs(model=str(tmp_path / "awq"), device="cpu", quantization="int8"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float16"])
def test_through_the_engine(tmp_path: Path, dtype: str) -> None:
    """Greedy tokens are those of the rounded plain weights (in half precision: nearly all of them)."""
    plain = tiny.write_checkpoint(tmp_path / "plain")
    write_pair(plain, tmp_path / "awq")
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    answers = []
    for folder in (plain, tmp_path / "awq"):
        with LLM(str(folder), dtype=dtype) as llm:
            prompts = [f"How many {word}?" for word in ("circles", "squares", "stars", "dogs")]
            answers.append([out.outputs[0].token_ids for out in llm.generate(prompts, params, use_tqdm=False)])
    same = [one == other for one, other in zip(*answers, strict=True)]
    assert all(same) if dtype == "float32" else sum(same) >= 2
