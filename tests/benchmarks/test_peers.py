"""The benchmark beside other engines: what its figures mean, and that an engine that fails stops nothing."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from benchmarks.peers import document
from benchmarks.peers.__main__ import Run
from benchmarks.peers.chart import chart
from benchmarks.peers.contender import Contender, server, worker
from benchmarks.peers.cost import Rates, floor_seconds, picture_flop, prompt_flop, step_flop
from benchmarks.peers.process import ContenderError, Others, ProcessTree
from benchmarks.peers.results import Figures, Results, describe_machine
from benchmarks.peers.targets import fit, lines
from benchmarks.peers.workloads import figures, long_prompts, same_picture
from trifocal.bench.load import Measured
from trifocal.bench.workload import Shape, make_questions
from trifocal.demo.run import MODEL
from trifocal.parent import python_module, python_path

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
