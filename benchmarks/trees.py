"""Two working trees of this project against each other: `python -m benchmarks.trees OLD NEW --model FOLDER`.

Each pair starts the server of both trees, the one that comes first changing from pair to pair, and measures its start,
text1, image1, image8, text16 and a prompt of 2048 tokens on FOLDER (random weights do), and a step of the built-in
model without a server. What is compared are speeds: a ratio of 1.1 means that NEW is a tenth faster. The interval that
holds the median ratio with 90 % is bootstrapped over the pairs. The exit status is 1 if one of them lies below --floor.

Expected of a change that only moves walls: every ratio 1, within a few percent of noise.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from benchmarks.peers.process import ProcessTree, free_port
from benchmarks.peers.workloads import WARM_UP, WORKLOADS, Workload, figures
from trifocal.bench.load import Target, run_load
from trifocal.cli.client import Client

MEASURED = {
    "text1": "decode_tok_s", "image1": "wall_s", "image8": "tok_s", "text16": "tok_s", "prefill2048": "ttft_s",
}  # fmt: skip
STEP = """
import statistics, sys, time
from trifocal import LLM, SamplingParams
with LLM(sys.argv[1], max_model_len=512) as llm:
    params = SamplingParams(temperature=0, max_tokens=256, ignore_eos=True)
    taken = []
    for _ in range(8):
        began = time.perf_counter()
        llm.generate(["Count the circles."], params, use_tqdm=False)
        taken.append(time.perf_counter() - began)
print(256 / statistics.median(taken[2:]))
"""


def environment(tree: Path) -> dict[str, str]:
    """So that this interpreter takes Trifocal from `tree`."""
    return {**os.environ, "PYTHONPATH": str(tree)}


def step_speed(tree: Path) -> float:
    """Tokens a second of one greedy sequence on the built-in model, in a process of its own."""
    command = [sys.executable, "-P", "-c", STEP, str(tree / "trifocal" / "demo" / "model")]
    done = subprocess.run(command, env=environment(tree), cwd=tree, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def ask(url: str, model: str, workload: Workload, seed: str) -> dict[str, float]:
    """The figures of one run of a workload."""
    questions = workload.questions(seed)
    return figures(asyncio.run(run_load(Target(url, model), questions, workload.shape.concurrency)))


def speeds(tree: Path, model: Path, seed: str, words: Sequence[str], only: Collection[str]) -> dict[str, float]:
    """What one start of a tree's server comes to; everything in units of which more is better."""
    port = free_port()
    command = [sys.executable, "-P", "-m", "trifocal", "serve", str(model), "--host", "127.0.0.1", "--port", str(port),
               "--served-model-name", "m", *words]  # fmt: skip
    began = time.perf_counter()
    with ProcessTree(command, Path(f"/tmp/trees-{os.getpid()}.log"), environment(tree)) as server:
        url = f"http://127.0.0.1:{port}"
        with Client(url) as client:
            while not client.is_ready():
                server.check()
                time.sleep(0.05)
        found = {"start": 1 / (time.perf_counter() - began)}
        ask(url, "m", WARM_UP, seed)
        for name, figure in MEASURED.items():
            if name not in only:
                continue
            value = ask(url, "m", WORKLOADS[name], seed)[figure]
            found[name] = 1 / value if figure.endswith("_s") and not figure.endswith("tok_s") else value
    if "step" in only:
        found["step"] = step_speed(tree)
    return found


def interval(ratios: Sequence[float], draws: int = 10_000) -> tuple[float, float]:
    """Where the median lies with 90 %, by bootstrap."""
    chance = random.Random(0)
    medians = sorted(statistics.median(chance.choices(ratios, k=len(ratios))) for _ in range(draws))
    return medians[draws // 20], medians[-draws // 20]


def main() -> int:
    """Measure and report; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--floor", type=float, default=0.97)
    everything = [*MEASURED, "step"]
    parser.add_argument("--only", nargs="+", choices=everything, default=everything, help="beside the start")
    parser.add_argument("--json", type=Path, help="keep every figure here")
    parser.add_argument("--serve", default="", help="further words of both commands")
    args = parser.parse_args()
    trees = {"old": args.old.resolve(), "new": args.new.resolve()}
    runs: list[dict[str, dict[str, float]]] = []
    for pair in range(args.pairs):
        order = list(trees) if pair % 2 == 0 else list(trees)[::-1]
        runs.append({name: speeds(trees[name], args.model, str(pair), args.serve.split(), args.only) for name in order})
        ratios = {name: runs[-1]["new"][name] / runs[-1]["old"][name] for name in runs[-1]["new"]}
        print(f"pair {pair + 1}: " + "  ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items()), flush=True)
        if args.json:
            args.json.write_text(json.dumps(runs, indent=1))
    is_slower = False
    for name in runs[0]["new"]:
        ratios_of = [run["new"][name] / run["old"][name] for run in runs]
        low, high = interval(ratios_of)
        is_slower |= high < args.floor
        print(f"{name:12} {statistics.median(ratios_of):.3f}  90 % in {low:.3f} .. {high:.3f}"
              + ("  SLOWER" if high < args.floor else ""))  # fmt: skip
    return int(is_slower)


if __name__ == "__main__":
    sys.exit(main())
