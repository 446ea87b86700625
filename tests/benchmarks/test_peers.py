"""The benchmark beside other engines: what its figures mean, and that an engine that fails stops nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.peers import document
from benchmarks.peers.__main__ import Run
from benchmarks.peers.chart import chart
from benchmarks.peers.contender import Contender, server, worker
from benchmarks.peers.cost import Rates, floor_seconds, picture_flop, prompt_flop, step_flop
from benchmarks.peers.engines import find_peers
from benchmarks.peers.openvino import contenders as openvino_contenders
from benchmarks.peers.process import ContenderError, Others, ProcessTree
from benchmarks.peers.results import Figures, Results, describe_machine
from benchmarks.peers.targets import fit, lines
from benchmarks.peers.workloads import figures, long_prompts, same_picture
from trifocal.bench.load import Measured
from trifocal.bench.workload import Question, Shape, make_questions
from trifocal.demo.run import MODEL
from trifocal.subprocesses import python_module, python_path

RATES = {"read": 30e9, "gemm_bf16": 400e9, "gemm_int8": 800e9}
PYTHON = sys.executable


def results(**speeds: float) -> Results:
    """Contenders by name with a speed of one stream each."""
    found = Results(describe_machine(), rounds=1)
    for name, speed in speeds.items():
        engine = "trifocal" if name.startswith("Trifocal") else "llama.cpp"
        runs = {"text1": [{"decode_tok_s": speed, "tok_s": speed, "prompt_tokens": 30.0, "wall_s": 4.0, "others": 0.0}]}
        precision = {"BF16": "bf16", "Q8_0": "int8", "Q4_0": "int4"}.get(name.split()[1], name.split()[1])
        found.contenders.append(Figures(name, engine, "1", precision, 988_000_000, runs, rates=[RATES]))
    return found


def test_figures_are_of_text_that_came() -> None:
    slow = Measured(10.0, 14.0, [11.0, 12.0, 13.0], num_prompt_tokens=20, num_output_tokens=3)
    fast = Measured(10.0, 12.0, [10.5, 11.0], num_prompt_tokens=40, num_output_tokens=3)
    found = figures([slow, fast])
    assert found["ttft_s"] == 0.75
    assert found["tok_s"] == 6 / 4
    assert found["decode_tok_s"] == (1 + 4) / 2
    assert found["prompt_tokens"] == 30


def test_an_answer_without_text_counts_as_failed() -> None:
    with pytest.raises(ValueError, match="no text"):
        figures([Measured(0.0, 1.0, [], 5, 3)])
    with pytest.raises(ValueError, match="503 busy"):
        figures([Measured(0.0, 1.0, [0.5], 5, 3), Measured(0.0, error="503 busy")])


def test_costs_are_those_of_the_checkpoint() -> None:
    assert step_flop(1) == pytest.approx(2 * 494e6, rel=0.01)  # half a billion parameters, each once
    assert prompt_flop(512) == pytest.approx(512 * 2 * 358e6 + 2 * 136e6, rel=0.01)
    assert picture_flop() == pytest.approx(2 * (1024 * 40e6 + 256 * 8.8e6), rel=0.05)


def test_a_floor_is_bound_by_memory_or_by_arithmetic() -> None:
    rates = Rates(**RATES)
    one = floor_seconds(rates, "bf16", 988e6, streams=1, prompt=1, output=100)
    assert one == pytest.approx(100 * 988e6 / 30e9, rel=0.01)
    many = floor_seconds(rates, "bf16", 988e6, streams=64, prompt=1, output=100)
    assert many > 100 * 64 * 988e6 / 400e9
    assert many > floor_seconds(rates, "int8", 494e6, streams=64, prompt=1, output=100)


def test_targets_hold_or_miss_by_the_run() -> None:
    found = {line.what: line for line in lines(results(**{"Trifocal bf16": 33.0, "llama.cpp BF16": 30.0}))}
    assert found["one stream, bf16"].holds is True
    assert found["one stream, bf16"].share == pytest.approx(1.1)
    assert found["one stream, bf16: weight bytes read"].holds is True  # 32.6 of 30 GB/s
    found = {line.what: line for line in lines(results(**{"Trifocal int8": 33.0, "llama.cpp Q8_0": 30.0}))}
    assert found["one stream, int8"].holds is False  # 1.2 times is asked for
    assert found["first token after one picture, int8"].holds is None  # not in this run


def test_a_line_through_points() -> None:
    assert fit([(0, 1.0), (1, 3.0), (2, 5.0)]) == (2.0, 1.0)


def test_the_page_keeps_what_was_written_by_hand(tmp_path: Path) -> None:
    run = results(**{"Trifocal bf16": 33.0, "llama.cpp BF16": 44.0})
    run.absent["vLLM"] = "no vllm in PATH"
    run.contenders[1].errors["image1"] = "it ended with exit status 9"
    page = document.write(run, tmp_path)
    page.write_text(page.read_text() + "## Why\n\nBecause.\n")
    text = document.write(run, tmp_path).read_text()
    assert text.count("## Why\n\nBecause.\n") == 1 and text.count(document.MARK) == 1
    assert "Not vLLM: no vllm in PATH." in text
    assert "- llama.cpp BF16 failed at image1: it ended with exit status 9" in text
    assert "| one stream, bf16 | 33 tok/s | ≥ 44 tok/s | 1 × llama.cpp BF16 | 0.75 | **misses** |" in text


def test_a_chart_shows_every_curve() -> None:
    svg = chart("<title>", "x", "y", {"a & b": [(1, 2.0), (4, 8.0)], "c": [(1, 1.0)]})
    assert svg.count("<polyline") == 2 and svg.count("<circle") == 3
    assert "a &amp; b" in svg and "&lt;title&gt;" in svg


def test_longer_prompts_begin_like_shorter_ones() -> None:
    short, long = long_prompts(50), long_prompts(100)
    assert len({str(question.messages) for question in long}) == len(long) == 8
    for one, other in zip(short, long, strict=True):
        assert other.messages[1]["content"].startswith(one.messages[1]["content"] + " ")


def test_the_same_picture_under_other_words() -> None:
    [first] = make_questions(Shape(1, 1, 32, 64, num_images=1), "seed")
    again = same_picture(first, "other")
    assert again.messages[0]["content"][0] == first.messages[0]["content"][0]
    assert again.messages[0]["content"][1] != first.messages[0]["content"][1]


def test_a_process_tree_is_watched_and_ended(tmp_path: Path) -> None:
    work = (
        "import subprocess, sys; subprocess.run([sys.executable, '-c', 'x = bytearray(200 << 20)\\nwhile True: pass'])"
    )
    with ProcessTree([PYTHON, "-c", work], tmp_path / "log") as tree, Others(tree) as others:
        for _ in range(100):
            time.sleep(0.1)
            if tree.peak_bytes > 200 << 20 and tree.cpu_seconds() > 0.3:
                break
        pids = [tree.process.pid, *_children(tree.process.pid)]
    assert tree.peak_bytes > 200 << 20
    assert len(pids) == 2
    assert not any(map(_runs, pids))
    assert 0 <= others.share <= 1


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_last_words_of_one_that_ended(tmp_path: Path) -> None:
    with ProcessTree([PYTHON, "-c", "import sys; sys.exit('no such model')"], tmp_path / "log") as tree:
        tree.process.wait()
        with pytest.raises(ContenderError, match="exit status 1: no such model"):
            tree.check()


WORKER = """
import json, sys
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    count = len(json.loads(line)["questions"])
    if count > 1:
        print(json.dumps({"error": "one at a time"}), flush=True)
        continue
    one = {"start": 1.0, "end": 3.0, "chunk_times": [2.0, 3.0], "num_prompt_tokens": 9, "num_output_tokens": 2}
    print(json.dumps({"measured": [one]}), flush=True)
"""


def test_a_round_goes_on_after_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.peers.__main__._add_rates", lambda figures: figures.rates.append(RATES))

    def ours(port: int) -> list[str]:
        return python_module("trifocal", "serve", str(MODEL), "--host", "127.0.0.1", "--port", str(port))

    contenders = [
        Contender(
            "broken", "llama.cpp", "1", "bf16", server(lambda port: [PYTHON, "-c", "raise SystemExit('broken')"])
        ),
        Contender("picky", "transformers", "1", "bf16", worker([PYTHON, "-c", WORKER])),
        Contender("Trifocal bf16", "trifocal", "1", "bf16", server(ours, python_path())),
    ]
    run = Run(contenders, ["text1", "text2"], Results({}, 1), tmp_path)
    run.round(0)
    broken, picky, good = run.results.contenders
    assert "exit status 1: broken" in broken.errors["start"] and not broken.runs
    assert picky.errors == {"text2": "one at a time"} and picky.value("text1", "ttft_s") == 1.0
    assert not good.errors
    assert good.value("text1", "prompt_tokens") and good.peak_bytes > 100 << 20
    assert good.runs["text2"][0]["tok_s"] > 0
    json.dumps(run.results.contenders[2].runs)


def pictures(name: str, engine: str, precision: str, ttft_s: float | None) -> Figures:
    """A contender that was asked about a picture; or, without a figure, one that did not start."""
    runs = {} if ttft_s is None else {"image1": [{"ttft_s": ttft_s, "tok_s": 9.0}]}
    return Figures(name, engine, "1", precision, runs=runs)


def test_recorded_figures_stand_in_for_engines_that_did_not_run() -> None:
    def beside(*peers: Figures) -> dict[str, str]:
        run = Results(describe_machine(), 1)
        run.contenders = [pictures(f"Trifocal {kind}", "trifocal", kind, 1.0) for kind in ("bf16", "int8")]
        run.contenders += peers
        return {line.what.partition(", ")[2]: line.beside for line in lines(run) if line.what.startswith("first token")}

    assert beside() == {
        "bf16": "0.85 × vLLM-CPU 0.32 bf16, recorded",
        "int8": "0.7 × OpenVINO GenAI 2026.4 int8, recorded",
    }
    slow = [pictures("vLLM bf16", "vllm", "bf16", 7.0), pictures("OpenVINO int8", "openvino", "int8", 8.0)]
    assert beside(*slow) == {"bf16": "0.85 × vLLM bf16", "int8": "0.7 × vLLM bf16"}
    broken = [pictures("vLLM bf16", "vllm", "bf16", None), pictures("OpenVINO int4", "openvino", "int4", 8.0)]
    assert beside(*broken) == {
        "bf16": "0.85 × vLLM-CPU 0.32 bf16, recorded",
        "int8": "0.7 × vLLM-CPU 0.32 bf16, recorded",
    }


def program(path: Path, *lines: str) -> Path:
    """A shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
    return path


def test_peers_that_scripts_installed_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    _, absent = find_peers(MODEL, tmp_path)
    reasons = {peer.name: peer.reason for peer in absent}
    assert "scripts/build-vllm" in reasons["vLLM"]
    assert "scripts/build-openvino" in reasons["OpenVINO GenAI"]

    vllm = program(tmp_path / "vllm" / "bin" / "vllm", "echo a word of its own", "echo 0.32.0+cpu")
    program(tmp_path / "openvino" / "runtime" / "bin" / "python", "echo 2026.4.1.0")
    export(tmp_path / "openvino")
    found, absent = find_peers(MODEL, tmp_path)
    assert not {"vLLM", "OpenVINO GenAI"} & {peer.name for peer in absent}
    here = {peer.name: peer for peer in found}
    assert here["vLLM bf16"].version == "0.32.0+cpu"
    assert [name for name in here if name.startswith("OpenVINO")] == ["OpenVINO bf16", "OpenVINO int8", "OpenVINO int4"]

    program(vllm, "echo it is broken >&2", "exit 1")
    assert "it is broken" in {peer.name: peer.reason for peer in find_peers(MODEL, tmp_path)[1]}["vLLM"]


def export(home: Path, *last: str) -> Path:
    """What takes optimum's place: it counts its calls, and writes weights into the folder that is its last word."""
    lines = ["while [ $# -gt 2 ]; do shift; done", f'echo "$1" >>"{home}/calls"', '/bin/mkdir "$2"']
    return program(
        home / "export" / "bin" / "python", *lines, *(last or ['echo 12345 >"$2/openvino_language_model.bin"'])
    )


def test_a_checkpoint_is_exported_once(tmp_path: Path) -> None:
    program(tmp_path / "runtime" / "bin" / "python", "echo 2026.4.1.0")
    with pytest.raises(ContenderError, match="cannot be started"):
        openvino_contenders(MODEL, tmp_path)
    export(tmp_path, "echo no memory left >&2")
    with pytest.raises(ContenderError, match="could not be exported: no memory left"):
        openvino_contenders(MODEL, tmp_path)
    export(tmp_path)
    for _ in range(2):
        found = openvino_contenders(MODEL, tmp_path)
        assert [(one.precision, one.version, one.weight_bytes) for one in found] == [
            ("bf16", "2026.4.1.0", 6), ("int8", "2026.4.1.0", 6), ("int4", "2026.4.1.0", 6),
        ]  # fmt: skip
    assert (tmp_path / "calls").read_text().split() == ["fp16", "fp16", "int8", "int4"]


OPENVINO = """
class Tensor:
    def __init__(self, pixels):
        self.shape = pixels.shape
"""
OPENVINO_GENAI = """
import sys
from types import SimpleNamespace as Thing

SchedulerConfig = Thing
GenerationConfig = lambda **fields: Thing(**fields)

class Handle:
    def __init__(self, images, config):
        assert all(image.shape == (1, 448, 448, 3) for image in images)
        assert config.ignore_eos and not config.do_sample and config.min_new_tokens == config.max_new_tokens
        self.left, self.unread, self.tokens = config.max_new_tokens, [], 20 + 256 * len(images)
    def can_read(self):
        return bool(self.unread)
    def read(self):
        return {0: Thing(generated_ids=[self.unread.pop()])}
    def get_vlm_perf_metrics(self):
        return Thing(get_num_input_tokens=lambda: self.tokens)

class ContinuousBatchingPipeline:
    def __init__(self, folder, scheduler, device, properties):
        print("a library talks", folder, device, properties)
        self.running = []
    def add_request(self, number, text, images, config):
        if text == "too much":
            raise RuntimeError("no blocks left")
        self.running.append(Handle(images, config))
        return self.running[-1]
    def has_non_finished_requests(self):
        self.running = [one for one in self.running if one.left]
        return bool(self.running)
    def step(self):
        for one in self.running:
            one.left -= 1
            one.unread.append(7)
"""


def test_openvinos_worker_times_every_token(tmp_path: Path) -> None:
    (tmp_path / "openvino.py").write_text(OPENVINO)
    (tmp_path / "openvino_genai.py").write_text(OPENVINO_GENAI)
    script = Path(document.__file__).with_name("openvino_worker.py")
    questions = make_questions(Shape(3, 3, 8, 5, num_images=1), "seed")
    questions.append(Question(make_questions(Shape(1, 1, 8, 2), "seed")[0].messages, 2))
    with worker([PYTHON, "-P", str(script), "folder", "{}"], {"PYTHONPATH": str(tmp_path)})(
        tmp_path / "log"
    ) as session:
        measured = session.ask(questions)
        with pytest.raises(ContenderError, match="no blocks left"):
            session.ask([Question([{"role": "user", "content": [{"type": "text", "text": "too much"}]}], 1)])
        assert len(session.ask(questions[:1])) == 1
    assert [len(one.chunk_times) for one in measured] == [one.num_output_tokens for one in measured] == [5, 5, 5, 2]
    assert [one.num_prompt_tokens for one in measured] == [276, 276, 276, 20]
    for one in measured:
        assert one.start < one.chunk_times[0] and one.chunk_times == sorted(one.chunk_times)
        assert one.end == one.chunk_times[-1]
    assert "a library talks folder CPU {}" in (tmp_path / "log").read_text()


TORCH = """
declared = []

class library:
    class Library:
        def __init__(self, *words):
            pass
        def define(self, words):
            declared.append(words.partition("(")[0])
"""


def test_operators_of_torchvision_are_declared_once(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(TORCH)
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "extension.py").write_text("import torch\n")
    (package / "__init__.py").write_text(
        "import torch\nfrom . import extension\nassert torch.declared == ['nms', 'qnms']\n"
    )
    script = Path(document.__file__).with_name("torchvision_shim.py")
    for _ in range(2):
        env = {"PYTHONPATH": str(tmp_path)}
        done = subprocess.run([PYTHON, script], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert (package / "extension.py").read_text().count("_declared =") == 1
