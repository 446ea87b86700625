"""Folders that cannot be served: one readable sentence that names file and field, exit status 2, never a traceback."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.api.helpers import free_port
from tests.models.families import ENTRIES
from trifocal.cli import main
from trifocal.config.engine import EngineArgs, resolve
from trifocal.errors import ConfigError
from trifocal.families import MODELS, PROCESSORS
from trifocal.tokenizer import Tokenizer, load_tokenizer

ROOT = Path(__file__).parents[2]
FAMILIES = {f"{name}-{spelling}": (entry, spelling) for name, entry in ENTRIES.items() for spelling in entry.in_engine}
FIRST = next(iter(FAMILIES))
# Version 2.0 was released without a preprocessor_config.json, and language models alone need none.
WITHOUT_PREPROCESSOR = ("minicpmv-2.0-released", *(name for name in FAMILIES if name.startswith("text-")))
Change = Callable[[Path], object]


# ------------------------------------------------------------------------------------------------- damage


def unlink(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


def write(name: str, text: str) -> Change:
    return lambda folder: (folder / name).write_text(text)


def cut(name: str, size: int) -> Change:
    """Keep the first `size` bytes, or all but the last `-size`."""
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def edit(name: str, **changes: Any) -> Change:
    def change(folder: Path) -> None:
        data = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**data, **changes}))

    return change


def edit_text(**changes: Any) -> Change:
    """Change fields of the language model's part of config.json."""

    def change(folder: Path) -> None:
        data = json.loads((folder / "config.json").read_text())
        part = next((data[name] for name in ("llm_config", "text_config") if name in data), data)
        part |= changes
        (folder / "config.json").write_text(json.dumps(data))

    return change


def reshape(folder: Path) -> None:
    """A row less in the last of the language model's norms."""
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("model.norm.weight"))
    save_file({**weights, name: weights[name][1:].contiguous()}, folder / "model.safetensors")


def forget(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights[next(name for name in weights if name.endswith("model.norm.weight"))]
    save_file(weights, folder / "model.safetensors")


def shard(folder: Path) -> list[Path]:
    """Put the weights into two files with an index, as large checkpoints are released."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files, weight_map = [folder / f"model-0000{number}-of-00002.safetensors" for number in (1, 2)], {}
    for number, file in enumerate(files):
        part = {name: weights[name] for name in sorted(weights)[number::2]}
        save_file(part, file)
        weight_map |= dict.fromkeys(part, file.name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return files


def empty_shard(folder: Path) -> None:
    shard(folder)[1].write_bytes(b"")


def empty_index(folder: Path) -> None:
    shard(folder)
    (folder / "model.safetensors.index.json").write_bytes(b"")


@dataclass(frozen=True)
class Damage:
    """What is done to a folder, what is then said (a pattern), and where: by default in every family."""

    change: Change
    message: str
    families: tuple[str, ...] = tuple(FAMILIES)


EMPTY = r"is empty \(0 bytes\): the download was cut short"
# Found before anything is loaded.
CONFIG: dict[str, Damage] = {
    "no config": Damage(unlink("config.json"), r"model/config\.json is missing: is this a Hugging Face checkpoint"),
    "empty config": Damage(cut("config.json", 0), rf"model/config\.json {EMPTY}"),
    "half a config": Damage(cut("config.json", 300), r"model/config\.json cannot be read: .*line \d+ column \d+"),
    "config is a list": Damage(write("config.json", "[1]"), r"model/config\.json must hold a JSON object, found list"),
    "no architecture": Damage(edit("config.json", architectures=[]), r"model/config\.json: field architectures is mis"),
    "unknown architecture": Damage(
        edit("config.json", architectures=["GPT2LMHeadModel"]),
        r"config\.json: architectures: 'GPT2LMHeadModel' is not supported; supported: InternVLChatModel, ",
    ),
    "unknown rope type": Damage(
        edit_text(rope_scaling={"rope_type": "spiral"}, rope_parameters=None),
        r"config\.json: rope_scaling has unknown type 'spiral'; known: default, linear, ",
    ),
    "unknown rope type, new spelling": Damage(
        edit_text(rope_parameters={"rope_type": "spiral"}), r"config\.json: rope_parameters has unknown type 'spiral'"
    ),
    "a word for a size": Damage(
        edit_text(hidden_size="large"), r"config\.json: hidden_size must be an integer of at least 1, got 'large'"
    ),
    "heads that do not divide": Damage(
        edit_text(num_key_value_heads=7), r"num_attention_heads \d+ is no multiple of num_key_value_heads 7"
    ),
    "empty preprocessor config": Damage(
        write("preprocessor_config.json", ""), rf"model/preprocessor_config\.json {EMPTY}"
    ),
    "empty generation config": Damage(write("generation_config.json", ""), rf"model/generation_config\.json {EMPTY}"),
}
# Found by the processor.
PROCESSOR: dict[str, Damage] = {
    "no preprocessor config": Damage(
        unlink("preprocessor_config.json"),
        r"model/preprocessor_config\.json is missing: it says how pictures are scaled, cut and normalised",
        tuple(name for name in FAMILIES if name not in WITHOUT_PREPROCESSOR),
    ),
    "no tokenizer": Damage(unlink("tokenizer.json"), r"model/tokenizer\.json is missing"),
    "empty tokenizer": Damage(cut("tokenizer.json", 0), r"model/tokenizer\.json "),
    "half a tokenizer": Damage(cut("tokenizer.json", 900), r"model/tokenizer\.json cannot be read: "),
    "empty tokenizer config": Damage(cut("tokenizer_config.json", 0), rf"model/tokenizer_config\.json {EMPTY}"),
}
# Found while the weights are read.
WEIGHTS: dict[str, Damage] = {
    "no weights": Damage(unlink("model.safetensors"), r"model holds no \*\.safetensors file"),
    "missing shard": Damage(lambda folder: shard(folder)[0].unlink(), r"model-00001-of-00002\.\w+ is missing"),
    "empty shard": Damage(empty_shard, rf"model/model-00002-of-00002\.safetensors {EMPTY}"),
    "empty index": Damage(empty_index, rf"model/model\.safetensors\.index\.json {EMPTY}"),
    "empty weights": Damage(cut("model.safetensors", 0), rf"model/model\.safetensors {EMPTY}"),
    "cut in the header": Damage(cut("model.safetensors", 100), r"model\.safetensors is not a readable safetensors fi"),
    "cut at the end": Damage(cut("model.safetensors", -100), r"model\.safetensors is not a readable safetensors file"),
    "wrong shape": Damage(
        reshape, r"model\.safetensors: tensor \S+norm\.weight has shape \[\d+\], config\.json asks for \[\d+\]"
    ),
    "missing tensor": Damage(forget, r"model: tensor \S+norm\.weight is in none of the safetensors files"),
}
DAMAGES = CONFIG | PROCESSOR | WEIGHTS
CASES = [(name, family) for name, damage in DAMAGES.items() for family in damage.families]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each family that can be served."""
    base = tmp_path_factory.mktemp("whole")
    return {name: entry.write(base / name, spelling) for name, (entry, spelling) in FAMILIES.items()}


def damaged(whole: dict[str, Path], name: str, family: str, where: Path) -> Path:
    folder = shutil.copytree(whole[family], where / "model")
    DAMAGES[name].change(folder)
    return folder


# ------------------------------------------------------------------------------------------------- one sentence


@pytest.mark.parametrize(("name", "family"), CASES)
def test_one_sentence(
    whole: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, family: str
) -> None:
    """The whole command line in this process; `bench throughput` loads as `serve` does, without a second process."""
    folder = damaged(whole, name, family, tmp_path)
    assert main(["bench", "throughput", str(folder), "--num-prompts", "1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("trifocal bench throughput: ") and len(line) < 400
    assert re.search(DAMAGES[name].message, line), line


@pytest.mark.parametrize("family", FAMILIES)
def test_a_whole_folder_is_served(whole: dict[str, Path], capsys: pytest.CaptureFixture[str], family: str) -> None:
    words = ["--num-prompts", "1", "--input-len", "2", "--output-len", "1", "--num-gpu-blocks-override", "64"]
    assert main(["bench", "throughput", str(whole[family]), *words, "--max-model-len", "256"]) == 0
    assert "1 requests in" in capsys.readouterr().out


@pytest.mark.parametrize("family", WITHOUT_PREPROCESSOR)
def test_who_needs_no_preprocessor_config(whole: dict[str, Path], tmp_path: Path, family: str) -> None:
    folder = shutil.copytree(whole[family], tmp_path / "model")
    (folder / "preprocessor_config.json").unlink(missing_ok=True)
    (folder / "model.safetensors").unlink()
    build(folder, load_tokenizer(str(folder)))


@pytest.mark.parametrize("path", ["nothing/here", "file"], ids=["no such folder", "a file"])
def test_not_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str], path: str) -> None:
    (tmp_path / "file").write_text("x")
    assert main(["serve", str(tmp_path / path)]) == 2
    assert f"{path}' is not a folder; give the path of a local checkpoint folder" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------- the real command


def test_serve_refuses_a_bad_config_before_torch_is_imported(whole: dict[str, Path], tmp_path: Path) -> None:
    """All of them in one process, for speed; each says its sentence and gives status 2."""
    folders = [str(damaged(whole, name, FIRST, tmp_path / name)) for name in CONFIG]
    code = (
        "import sys\nfrom trifocal.cli import main\n"
        "print([main(['serve', folder]) for folder in sys.argv[1:]], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, *folders], capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.stdout.strip() == f"{[2] * len(folders)} False", done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == len(folders) and all(line.startswith("trifocal serve: ") for line in lines)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("no tokenizer", marks=pytest.mark.slow),
        "missing shard",
        pytest.param("wrong shape", marks=pytest.mark.slow),
    ],
)
def test_serve_says_what_its_engine_process_found(whole: dict[str, Path], tmp_path: Path, name: str) -> None:
    folder = damaged(whole, name, FIRST, tmp_path)
    words = ["serve", str(folder), "--host", "127.0.0.1", "--port", str(free_port())]
    done = subprocess.run(
        [sys.executable, "-m", "trifocal", *words],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 2 and done.stdout == "", done.stderr
    assert "Traceback" not in done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("trifocal serve: ")
    assert re.search(DAMAGES[name].message, line), line


# ------------------------------------------------------------------------------------------------- any field at all

# Three of them for each field; all 13 take a minute.
WRONG: tuple[Any, ...] = ("many", "", -1, 0, 1.5, 1e400, None, True, [], [None], ["x"], {}, {"type": 1})


def leaves(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of everything in a JSON document."""
    if path:
        yield path
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield from leaves(value, (*path, key))


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json", "generation_config.json"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_wrong_value_anywhere(whole: dict[str, Path], tmp_path: Path, family: str, file: str) -> None:
    """Any field with any value: accepted, or refused in one sentence; nothing else is raised."""
    if not (whole[family] / file).exists():
        pytest.skip("this family has no such file")
    folder = shutil.copytree(whole[family], tmp_path / "model")
    (folder / "model.safetensors").unlink()
    tokenizer = load_tokenizer(str(folder))
    text = (folder / file).read_text()
    rng, num_refused = random.Random(f"{family}{file}"), 0
    for path in leaves(json.loads(text)):
        for value in rng.sample(WRONG, 3):
            data = json.loads(text)
            place = data
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = value
            (folder / file).write_text(json.dumps(data))
            try:
                build(folder, tokenizer)
            except ConfigError as error:
                num_refused += 1
                assert "\n" not in str(error) and len(str(error)) < 400
            except Exception as error:
                raise AssertionError(f"{file}: {path} = {value!r}: {error!r}") from error
    assert num_refused > 0 or file == "generation_config.json"


def build(folder: Path, tokenizer: Tokenizer) -> None:
    """What starting does up to the weights."""
    spec = resolve(EngineArgs(model=str(folder))).model.spec
    PROCESSORS.get(spec.architecture)(spec, tokenizer)
    with torch.device("meta"):
        MODELS.get(spec.architecture)(spec)
