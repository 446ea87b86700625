"""Folders that `trifocal quantize` writes: the same model under other weights, in the format that others read."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from benchmarks.quantize import load
from tests import tiny, tiny_internvl
from tests.models.families import ENTRIES
from tests.oracle import Runner, load_processor, make_sample, relative_error
from tests.quantize.formula import all_tensors, unpacked, write_dequantized
from trifocal.cli import main
from trifocal.cli.flags import Parser
from trifocal.cli.quantize import configure_parser
from trifocal.config.engine import EngineArgs, resolve
from trifocal.llm import LLM
from trifocal.models.loader import empty_model
from trifocal.quantize import awq, scales
from trifocal.quantize.awq import Work, quantize
from trifocal.quantize.inputs import build_prompts
from trifocal.quantize.samples import Sample, built_in
from trifocal.quantize.shards import ShardWriter
from trifocal.quantize.source import Source
from trifocal.sampling_params import SamplingParams

NAMES = (
    "qwen2_5_vl", "qwen2_5_vl-kv4-shards", "internvl-qwen2-300M", "internvl-qwen3-300M", "internvl-internlm2-300M",
    "internvl-phi3-300M", "minicpmv-2.6", "minicpmv-2.5", "minicpmv-2.0", "text-mistral-window",
)  # fmt: skip
KEPT = {"qwen2_5_vl": ["visual"], "internvl": ["vision_model", "mlp1"], "minicpmv": ["vpm", "resampler"], "text": []}
TOKENS = 300
ROOT = Path(__file__).parents[2]


def few_samples() -> list[Sample]:
    samples = list(built_in())
    return [samples[0], next(each for each in samples if "image" in str(each.messages)), samples[3]]


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_the_formula(tmp_path: Path, name: str) -> None:
    """Our reader against the written tensors unpacked in numpy: equal; the tower and the rest are as they were."""
    entry = ENTRIES[name]
    plain = entry.write(tmp_path / "plain", entry.spellings[0])
    report = quantize(plain, tmp_path / "awq", few_samples(), num_tokens=TOKENS, progress=False)
    assert 0 < report.error < report.plain_error and 50 < report.num_tokens <= TOKENS
    assert report.bytes_after < report.bytes_before
    num_fused = {"internvl-internlm2-300M": 5, "internvl-phi3-300M": 4}.get(name, 7)  # tensors a layer
    assert write_dequantized(tmp_path / "awq", tmp_path / "formula") == num_fused * 2
    sample = make_sample(load_processor(plain), "image" if entry.image else "long text")
    ours, expected, exact = (
        Runner(load(folder)).logits([sample])[0] for folder in (tmp_path / "awq", tmp_path / "formula", plain)
    )
    assert torch.equal(ours, expected)
    assert 0.001 < relative_error(ours, exact) < 1
    before, after = all_tensors(plain), all_tensors(tmp_path / "awq")
    config = json.loads((tmp_path / "awq" / "config.json").read_text())
    kept = config["quantization_config"]["modules_to_not_convert"]
    assert sorted(kept) == sorted(KEPT[name.split("-")[0]])
    same = [each for each in before if each.startswith((*kept, "lm_head"))]
    assert (len(same) > 10 or not kept) and all(torch.equal(before[each], after[each]) for each in same)


@pytest.mark.parametrize("name", NAMES)
def test_scales_alone_change_nothing(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without rounding, weights with large scales in them make the model that they were taken from."""
    monkeypatch.setattr(scales, "_GRID", 1)
    monkeypatch.setattr(scales, "_candidate", lambda size, exponent: 0.3 + size * 1e4 % 3)
    entry = ENTRIES[name]
    plain = entry.write(tmp_path / "plain", entry.spellings[0])
    config = resolve(EngineArgs(model=str(plain), device="cpu"))
    with Source(plain) as source:
        work = Work(config, source, empty_model(config.model.spec, torch.float32), progress=False)
        work.search(build_prompts(config, few_samples(), TOKENS), 32)
        assert len(work.changes) == 9 * 2
        for change in work.changes.values():
            change.limit = None
            assert any(each is not None and each.max() > 2 * each.min() for each in (change.times, change.over))
        tensors = {file: source.read(file) for file in source.files}
        for each, ours in work.ours.items():
            if ours is not None and ours.startswith(f"{work.path}.layers."):
                tensors[each] = work.changed(ours, tensors[each]).contiguous()
    moved = tmp_path / "moved"
    entry.write(moved, entry.spellings[0])
    for file in moved.glob("*.safetensors*"):
        file.unlink()
    save_file(tensors, moved / "model.safetensors")
    sample = make_sample(load_processor(plain), "image" if entry.image else "long text")
    ours, expected = (Runner(load(folder)).logits([sample])[0] for folder in (moved, plain))
    assert relative_error(ours, expected) < 1e-4
    assert not torch.equal(ours, expected)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole way: the command line, the files, `LLM` on what was written."""
    plain, out = tiny.write_checkpoint(tmp_path / "plain", dtype="bfloat16"), tmp_path / "new" / "awq"
    words = ["quantize", str(plain), str(out), "--method", "awq", "--group-size=32", "--calibration_tokens", "256"]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "in groups of 32" in told and f"trifocal serve {out}" in told
    assert {file.name for file in out.iterdir()} == {file.name for file in plain.iterdir()}
    for file in plain.iterdir():
        if file.suffix == ".json" and file.name != "config.json":
            assert (out / file.name).read_bytes() == file.read_bytes()
    config = json.loads((out / "config.json").read_text())
    assert config.pop("quantization_config") == {
        "quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm",
        "modules_to_not_convert": ["visual"],
    }  # fmt: skip
    assert config == {**json.loads((plain / "config.json").read_text()), "torch_dtype": "float16"}
    tensors = all_tensors(out)
    prefix = "model.layers.0.mlp.down_proj."
    kinds = {name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)}
    rows, columns = tiny.INTERMEDIATE, tiny.HIDDEN
    assert {kind: (list(each.shape), each.dtype) for kind, each in kinds.items()} == {
        "qweight": ([rows, columns // 8], torch.int32),
        "qzeros": ([rows // 32, columns // 8], torch.int32),
        "scales": ([rows // 32, columns], torch.float16),
    }
    assert len(set(unpacked(kinds["qweight"]).flatten().tolist())) == 16
    assert tensors["model.layers.0.self_attn.q_proj.bias"].dtype == torch.bfloat16
    assert list(tmp_path.joinpath("new").iterdir()) == [out], "nothing is left beside it"
    write_dequantized(out, tmp_path / "formula")
    params, answers = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True), []
    for folder in (out, tmp_path / "formula"):
        with LLM(str(folder), dtype="float32") as llm:
            messages = [{"role": "user", "content": "How many circles?"}]
            answers.append(llm.chat(messages, params, use_tqdm=False)[0].outputs[0].token_ids)
    assert answers[0] == answers[1] and len(answers[0]) == 12


def test_a_folder_without_a_chat_template_can_be_given_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The error names a flag that there is."""
    plain = tiny.write_checkpoint(tmp_path / "plain")
    settings = json.loads((plain / "tokenizer_config.json").read_text())
    (tmp_path / "chat.jinja").write_text(settings.pop("chat_template"))
    (plain / "tokenizer_config.json").write_text(json.dumps(settings))
    words = ["quantize", str(plain), str(tmp_path / "awq"), "--calibration-tokens", "256"]
    assert main(words) == 2
    assert "has no chat template; give one by --chat-template" in capsys.readouterr().err
    assert main([*words, "--chat-template", str(tmp_path / "nothing.jinja")]) == 2
    assert "nothing.jinja' is neither a file nor a Jinja template" in capsys.readouterr().err
    assert not (tmp_path / "awq").exists()
    assert main([*words, "--chat-template", str(tmp_path / "chat.jinja")]) == 0
    told = capsys.readouterr().out
    assert f"trifocal serve {tmp_path / 'awq'} --chat-template {tmp_path / 'chat.jinja'}\n" in told


def test_flags_that_errors_about_samples_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the code that reads samples proposes can be given, and does what it says."""
    parser = Parser()
    configure_parser(parser)
    known = {flag for action in parser._actions for flag in action.option_strings}
    names = (
        "prompt/planning",
        "prompt/text",
        "media/limits",
        "media/decode/image",
        "media/decode/video",
        "media/reader",
    )
    sources = [(ROOT / "trifocal" / f"{name}.py").read_text() for name in names]
    named = {flag for source in sources for flag in re.findall(r"[( ](--[a-z][a-z-]+)", source)}
    assert len(named) >= 5 and named <= known
    plain, image = tiny.write_checkpoint(tmp_path / "plain"), {"text": "Red?", "images": ["red.png"], "answer": "Yes."}
    Image.new("RGB", (56, 56), "red").save(tmp_path / "red.png")
    (tmp_path / "mine.jsonl").write_text(json.dumps(image))
    words = ["quantize", str(plain), str(tmp_path / "awq"), "--calibration", str(tmp_path / "mine.jsonl")]
    assert main([*words, '--limit-mm-per-prompt={"image": 0}']) == 2
    assert "mine.jsonl, line 1: at most 0 image(s)" in capsys.readouterr().err
    assert main([*words, '--limit-mm-per-prompt={"image": 1}']) == 0


def test_nested_and_native_spellings(tmp_path: Path) -> None:
    """transformers 5 writes its own names; so does the result."""
    nested = tiny.write_checkpoint(tmp_path / "nested", layout="nested", dtype="bfloat16")
    quantize(nested, tmp_path / "a", few_samples(), num_tokens=TOKENS, progress=False)
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["dtype"] == config["text_config"]["dtype"] == "float16"
    assert config["quantization_config"]["modules_to_not_convert"] == ["visual"]
    assert "model.language_model.layers.1.mlp.up_proj.qweight" in all_tensors(tmp_path / "a")
    native = tiny_internvl.write_checkpoint(tmp_path / "native", layout="native-memory")
    quantize(native, tmp_path / "b", few_samples(), num_tokens=TOKENS, progress=False)
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    kept = config["quantization_config"]["modules_to_not_convert"]
    assert sorted(kept) == ["multi_modal_projector", "vision_tower"]
    for folder in (tmp_path / "a", tmp_path / "b"):
        load(folder)


def test_group_sizes(tmp_path: Path) -> None:
    """The largest that divides everything, 64 here, or the one asked for; without samples it is plain rounding."""
    plain = tiny.write_checkpoint(tmp_path / "plain")
    assert quantize(plain, tmp_path / "a", None, progress=False).group == 64
    assert quantize(plain, tmp_path / "b", None, group=32, progress=False).group == 32
    weight = load_file(plain / "model.safetensors")["model.layers.1.mlp.gate_proj.weight"]
    write_dequantized(tmp_path / "b", tmp_path / "formula")
    back = load_file(tmp_path / "formula" / "model.safetensors")["model.layers.1.mlp.gate_proj.weight"]
    steps = (weight.view(-1, 32).amax(1) - weight.view(-1, 32).amin(1)) / 15
    assert bool(((back - weight).view(-1, 32).abs() <= steps[:, None] * 1.01 + 1e-6).all())


def test_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(awq, "ShardWriter", lambda folder: ShardWriter(folder, shard_bytes=100_000))
    plain = tiny.write_checkpoint(tmp_path / "plain")
    report = quantize(plain, tmp_path / "awq", None, progress=False)
    files = sorted(file.name for file in (tmp_path / "awq").glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((tmp_path / "awq" / "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == files
    tensors = all_tensors(tmp_path / "awq")
    assert index["metadata"]["total_size"] == report.bytes_after == sum(each.nbytes for each in tensors.values())
    assert index["weight_map"].keys() == tensors.keys()
    load(tmp_path / "awq")


def words(tmp_path: Path, *more: str) -> list[str]:
    return ["quantize", str(tmp_path / "plain"), str(tmp_path / "out"), *more]


def taken(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")


def quantized_already(tmp_path: Path) -> None:
    change_config(tmp_path, quantization_config={"quant_method": "gptq", "bits": 4})


def change_config(tmp_path: Path, **fields: Any) -> None:
    file = tmp_path / "plain" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def without_weights(tmp_path: Path) -> None:
    (tmp_path / "plain" / "model.safetensors").unlink()


def without_a_tensor(tmp_path: Path) -> None:
    file = tmp_path / "plain" / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, file)


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (taken, "is not empty; give a new folder"),
        (lambda tmp_path: (tmp_path / "out").write_text("x"), "is a file; give a new folder"),
        (lambda tmp_path: (tmp_path / "plain").rename(tmp_path / "other"), "is not a folder"),
        (quantized_already, "quant_method gptq"),
        (lambda path: change_config(path, quantization_config={"quant_method": "awq"}), "already quantized by awq"),
        (lambda path: change_config(path, architectures=["GPT2LMHeadModel"]), "'GPT2LMHeadModel' is not supported"),
        (without_weights, "holds no *.safetensors file"),
        (without_a_tensor, "model.layers.1.mlp.up_proj.weight is in none of the safetensors files"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], prepare: Any, message: str) -> None:
    """One line, exit status 2, and nothing new on the disk."""
    tiny.write_checkpoint(tmp_path / "plain")
    prepare(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert main(words(tmp_path, "--calibration-tokens=64")) == 2
    told = capsys.readouterr().err.replace("language_model.", "model.")
    assert message in told and told.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_flags_that_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.write_checkpoint(tmp_path / "plain")
    for flags, message in (
        (["--group-size=128"], "hidden_size 64 of the language model is not a multiple of 128"),
        (["--calibration-tokens=5"], "--calibration-tokens must be at least 64"),
        (["--calibration", str(tmp_path / "none.jsonl")], "none.jsonl cannot be read"),
    ):
        assert main(words(tmp_path, *flags)) == 2
        assert message in capsys.readouterr().err
    for flags in (["--method=int8"], ["--group-size=48"]):
        with pytest.raises(SystemExit) as end:
            main(words(tmp_path, *flags))
        assert end.value.code == 2 and "invalid choice" in capsys.readouterr().err
    assert main(["quantize", str(tmp_path / "plain"), str(tmp_path / "plain" / "awq")]) == 2
    assert "lies within PATH" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(28, "No space left on device"), "OUT '{out}' cannot be written: No space left on device"),
        (FileNotFoundError(2, "No such file", "shard.safetensors"), "'shard.safetensors' cannot be read: No such file"),
    ],
)
def test_what_fails_leaves_nothing(
    error: OSError, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """A full disk while the last shard is written, or a file that goes away meanwhile."""
    tiny.write_checkpoint(tmp_path / "plain")

    def fail(self: ShardWriter) -> None:
        raise error

    monkeypatch.setattr(ShardWriter, "finish", fail)
    monkeypatch.setattr("trifocal.quantize.samples.built_in", few_samples)
    assert main(words(tmp_path, "--calibration-tokens=64")) == 2
    assert told.format(out=tmp_path / "out") in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["plain"]
