"""Which kernels are compiled and used, and what happens without: one line in the log and torch's results."""

from __future__ import annotations

import logging
import stat
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.kernels import isa
from trifocal.config import envs
from trifocal.kernels.base import TORCH
from trifocal.kernels.cpu import build as building
from trifocal.kernels.cpu import library as loading
from trifocal.kernels.cpu.build import INSTRUCTION_SETS, BuildError, build, choose, compiler
from trifocal.kernels.cpu.ops import CpuKernels
from trifocal.llm import LLM
from trifocal.platforms.cpu import CpuPlatform
from trifocal.sampling_params import SamplingParams

DEMO = Path(__file__).parents[2] / "trifocal" / "demo" / "model"
GREEDY = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Nothing loaded before, nor kept for later."""
    loading._load.cache_clear()
    yield monkeypatch
    loading._load.cache_clear()


def test_the_best_instruction_set_is_chosen() -> None:
    for each in INSTRUCTION_SETS:
        assert choose("1", each.features) is each
    everything = INSTRUCTION_SETS[0].features
    assert choose("avx2", everything).name == "avx2"
    for better, worse in pairwise(INSTRUCTION_SETS):
        with pytest.raises(BuildError, match=f"lacks {better.name}"):
            choose(better.name, worse.features)
    with pytest.raises(BuildError, match="lacks AVX2"):
        choose("1", frozenset({"sse2"}))


def test_each_can_be_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in isa.NAMES:
        monkeypatch.setenv("TRIFOCAL_CPU_KERNELS", name)
        assert envs.CPU_KERNELS.get() == name


def test_amx_needs_the_systems_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux keeps its registers for a process only if that asks, and may refuse."""
    monkeypatch.setattr(building.Path, "read_text", lambda _: "flags : avx2 amx_tile amx_bf16 amx_int8")
    for answer, seen in ((True, {"avx2", "amx_tile", "amx_bf16", "amx_int8"}), (False, {"avx2"})):
        monkeypatch.setattr(building, "_may_use_tiles", lambda answer=answer: answer)
        assert building.cpu_features() == seen


def test_compiled_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The second call finds the file; another source, flag or compiler is another file."""
    chosen = INSTRUCTION_SETS[-1]
    calls = []

    def compile_sources(command: list[str], folder: Path) -> Path:
        calls.append(command)
        (folder / "kernels.so").write_bytes(b"compiled")
        return folder / "kernels.so"

    monkeypatch.setenv("TRIFOCAL_CACHE_ROOT", str(tmp_path))
    monkeypatch.setenv("CXX", "some-compiler")
    monkeypatch.setattr(building, "compile_sources", compile_sources)
    first = build(chosen)
    assert build(chosen) == first and len(calls) == 1
    assert list(first.parent.iterdir()) == [first], "nothing else is left behind"
    source = tmp_path / "src"
    source.mkdir()
    (source / "a.cpp").write_text("int one() { return 1; }")
    monkeypatch.setattr(building, "SOURCES", source)
    assert build(chosen) != first and len(calls) == 2


def test_compiler_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "broken-c++"
    script.write_text("#!/bin/sh\necho 'a.cpp:1: warning: odd' >&2\necho 'a.cpp:2: error: no such thing' >&2\nexit 1\n")
    script.chmod(stat.S_IRWXU)
    monkeypatch.setenv("TRIFOCAL_CACHE_ROOT", str(tmp_path))
    monkeypatch.setenv("CXX", str(script))
    with pytest.raises(BuildError, match=r"^\S+broken-c\+\+ failed: a.cpp:2: error: no such thing$"):
        build(INSTRUCTION_SETS[-1])
    assert not list((tmp_path / "kernels").iterdir())


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(BuildError, match=r"no C\+\+ compiler was found"):
        compiler()
    assert building.main() == 0, "make must go on"


def test_folder_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TRIFOCAL_CACHE_ROOT", str(tmp_path / "file"))
    monkeypatch.setenv("CXX", "c++")
    with pytest.raises(BuildError, match="TRIFOCAL_CACHE_ROOT names another"):
        build(INSTRUCTION_SETS[-1])


def test_without_kernels_the_log_says_once_what_is_lost(
    fresh: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fresh.setenv("PATH", str(tmp_path))
    fresh.delenv("CXX", raising=False)
    fresh.delenv("TRIFOCAL_CPU_KERNELS", raising=False)
    fresh.setattr(logging.getLogger("trifocal"), "propagate", True)
    with caplog.at_level("INFO"):
        assert CpuPlatform().kernels() is TORCH and CpuPlatform().kernels() is TORCH
    # By identity: where an earlier test has configured our logger, pytest hands one record over twice.
    (record,) = {id(record): record for record in caplog.records}.values()
    assert "no C++ compiler was found" in record.message and "decoding in bfloat16" in record.message


def test_zero_switches_off_without_a_word(fresh: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    fresh.setenv("TRIFOCAL_CPU_KERNELS", "0")
    with caplog.at_level("INFO"):
        assert CpuPlatform().kernels() is TORCH
    assert not caplog.records


def test_a_name_asks_for_that_instruction_set(fresh: pytest.MonkeyPatch) -> None:
    isa.library("avx2")  # or skip
    fresh.setenv("TRIFOCAL_CPU_KERNELS", "avx2")
    kernels = CpuPlatform().kernels()
    assert isinstance(kernels, CpuKernels) and kernels.name == "avx2"


def test_threads_are_torchs() -> None:
    """One OpenMP runtime in the process: kernels that brought their own would run against torch's waiting threads."""
    isa.library("avx2")
    code = (  # in a process of its own: packages that other tests import may have brought a runtime
        "import torch\nfrom trifocal.kernels.cpu.library import load\n"
        "assert load() is not None\ntorch.ones(1 << 20).sum()\nprint(open('/proc/self/maps').read())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    maps = {line.split()[-1] for line in done.stdout.splitlines() if "/" in line}
    assert len([path for path in maps if Path(path).name.startswith(("libgomp", "libomp", "libiomp"))]) == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_answers_without_kernels(fresh: pytest.MonkeyPatch, dtype: str) -> None:
    """The built-in model through the engine, each way."""
    prompts = [f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n" for text in ("Hello", "Who are you?")]
    answers = []
    for choice in ("0", "1"):
        fresh.setenv("TRIFOCAL_CPU_KERNELS", choice)
        with LLM(str(DEMO), dtype=dtype) as llm:
            answers.append([out.outputs[0].token_ids for out in llm.generate(prompts, GREEDY, use_tqdm=False)])
    assert answers[0] == answers[1]
