"""`trifocal models`: what it lists is what can be run, and every claim names a test that exists."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny
from tests.models.families import ENTRIES
from trifocal.cli import main
from trifocal.cli.models import catalogue
from trifocal.config.engine import EngineArgs, resolve
from trifocal.config.model import DTYPES
from trifocal.errors import ConfigError
from trifocal.families import DECODERS, FAMILIES, MODELS, PROCESSORS, Check, check_architecture

ROOT = Path(__file__).parents[2]
CHECKS = [check for family in FAMILIES for check in family.checks]


@pytest.mark.parametrize("columns", [72, 80, 120])
def test_table(columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["models"]) == 0
    text = capsys.readouterr().out
    assert all(len(line) <= columns for line in text.splitlines())
    words = " ".join(text.split())
    for family in FAMILIES:
        for told in (*family.releases, *family.language_models, *family.modalities):
            assert told in words
        assert all(each.architecture in words for each in family.formats)
        assert all(check.what in words and check.reference in words for check in family.checks)
    assert all(dtype in words for dtype in DTYPES.values())
    assert "rope_scaling: default, linear, dynamic, yarn, llama3, longrope, as in transformers, except" in words
    assert "dynamic: beyond the original context, each token has the base of a context that ends with it" in words
    assert words.count("no checkpoint was run as it was released") == sum(
        not family.is_run_as_released for family in FAMILIES
    )


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads(json.dumps(catalogue()))
    names = [each["architecture"] for family in told["families"] for each in family["formats"]]
    assert sorted(names) == sorted(MODELS) == sorted(PROCESSORS)
    assert set(told["rope_scaling"]["differences"]) == {"dynamic"} < set(told["rope_scaling"]["types"])
    assert told["weights"]["quantization"] == ["awq", "int8", "int4"]
    assert told["weights"]["dtypes"] == ["bfloat16", "float16", "float32"]
    assert told["families"][0]["modalities"] == ["text", "image", "video"]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.test)
def test_the_test_behind_a_claim_exists(check: Check) -> None:
    file, _, function = check.test.partition("::")
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_language_models_are_those_of_the_code() -> None:
    """Each that is told is registered, and behind InternVL's towers each that is told is compared with a reference."""
    known = {each.removesuffix("ForCausalLM") for each in DECODERS}
    assert all(set(family.language_models) <= known for family in FAMILIES)
    compared = {name.split("-")[1] for name in ENTRIES if name.startswith("internvl-")}
    assert {
        each.lower() for family in FAMILIES if family.name == "InternVL" for each in family.language_models
    } == compared


@pytest.mark.parametrize("method", ["awq", "int8", "int4", "gptq", "fp8", "bitsandbytes", "compressed-tensors"])
def test_quantizations_are_those_that_are_not_refused(tmp_path: Path, method: str) -> None:
    """Of a plain checkpoint by the flag, of a quantized one by its config.json."""
    folder = tiny.write_checkpoint(tmp_path)
    if method not in ("int8", "int4"):
        settings = json.loads((folder / "config.json").read_text())
        settings["quantization_config"] = {"quant_method": method}
        (folder / "config.json").write_text(json.dumps(settings))
    args = EngineArgs(model=str(folder), quantization=method, device="cpu")
    if method in catalogue()["weights"]["quantization"]:
        quantization = resolve(args).model.quantization
        assert quantization is not None and quantization.method == method
        return
    with pytest.raises(ConfigError, match=method):
        resolve(args)


def test_an_unknown_architecture_points_here() -> None:
    with pytest.raises(ConfigError, match=r"'GPT2LMHeadModel' is not supported; .*InternVLChatModel.*trifocal models"):
        check_architecture("GPT2LMHeadModel")


def test_without_torch_and_for_a_reader_that_leaves() -> None:
    code = "import sys\nfrom trifocal.cli import main\nmain(['models'])\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=60)
    words = [sys.executable, "-m", "trifocal", "models", "--json"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait(60) == 0
