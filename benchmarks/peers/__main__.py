"""Trifocal beside the engines that are found on this machine, in one run: `make bench` or `python -m benchmarks.peers`.

Makes the checkpoint, then in rounds starts one engine after the other, asks the workloads of `workloads.py`, and stops
it. Beside each start it measures what the machine reaches. At the end: a page (`docs/performance.md`), its pictures and
a JSON file. An engine that fails is named in the page, and the run goes on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.peers import document, workloads
from benchmarks.peers.checkpoint import CheckpointError, make_checkpoint
from benchmarks.peers.contender import Contender, Session, is_failure
from benchmarks.peers.engines import PRECISIONS, find_peers, ours
from benchmarks.peers.process import Others
from benchmarks.peers.results import Figures, Results, describe_machine
from benchmarks.peers.targets import lines
from trifocal.bench.workload import Question

ROOT = Path(__file__).parents[2]


class Run:
    """One benchmark run; `results` grow with it."""

    def __init__(self, contenders: Sequence[Contender], chosen: Sequence[str], results: Results, logs: Path) -> None:
        self._contenders, self._chosen, self._logs = contenders, chosen, logs
        self.results = results
        results.contenders = [
            Figures(one.name, one.engine, one.version, one.precision, one.weight_bytes) for one in contenders
        ]  # fmt: skip

    def round(self, number: int) -> None:
        """Every contender once."""
        for contender, figures in zip(self._contenders, self.results.contenders, strict=True):
            _say(f"round {number + 1}: {contender.name}")
            _add_rates(figures)
            try:
                with contender.start(self._logs / f"{contender.name}.log") as session:
                    figures.start_s.append(session.start_s)
                    _say(f"  ready in {session.start_s:.1f} s")
                    session.ask(workloads.WARM_UP.questions(str(number)))
                    self._ask(contender, figures, session, number)
                    figures.peak_bytes = max(figures.peak_bytes, session.tree.peak_bytes)
            except Exception as error:
                if not is_failure(error):
                    raise
                figures.errors["start"] = str(error)[:300]
                _say(f"  failed: {error}")
            _add_rates(figures)

    def _ask(self, contender: Contender, figures: Figures, session: Session, number: int) -> None:
        for name in self._chosen:
            if contender.only is not None and name not in contender.only:
                continue
            if name == workloads.CONTEXT:
                if contender.is_ours and number == 0:
                    self._context(figures, session)
                continue
            workload = workloads.WORKLOADS[name]
            if workload.is_once and number > 0:
                continue
            questions = workload.questions(str(number))
            _measure(figures, session, name, questions)
            if name == "image1" and name not in figures.errors:
                again = [workloads.same_picture(questions[0], f"{number}/again")]
                _measure(figures, session, workloads.AGAIN, again, is_cached=True)

    def _context(self, figures: Figures, session: Session) -> None:
        """Prompts are computed first; then their streams decode together, three times."""
        for tokens in workloads.CONTEXT_TOKENS:
            name, prompts = f"context{tokens}", workloads.long_prompts(int(tokens * workloads.WORDS_PER_TOKEN))
            session.ask([Question(prompt.messages, 1) for prompt in prompts], is_cached=True)
            for _ in range(3):
                _measure(figures, session, name, prompts, is_cached=True)


def _measure(
    figures: Figures, session: Session, name: str, questions: Sequence[Question], is_cached: bool = False
) -> None:  # fmt: skip
    if name in figures.errors:
        return
    try:
        with Others(session.tree) as others:
            measured = session.ask(questions, is_cached)
        found = workloads.figures(measured) | {"others": others.share}
    except Exception as error:
        if not is_failure(error):
            raise
        session.tree.check()  # it has ended: nothing further can be asked
        figures.errors[name] = str(error)[:300]
        _say(f"  {name}: failed: {error}")
        return
    figures.runs.setdefault(name, []).append(found)
    text = "  ".join(f"{key} {value:.3g}" for key, value in found.items() if key != "others")
    busy = f"  (others took {others.share:.0%} of the processors)" if others.share > 0.05 else ""
    _say(f"  {name}: {text}{busy}")


def _add_rates(figures: Figures) -> None:
    command = [sys.executable, "-m", "benchmarks.peers.rates"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        _say(f"  rates could not be measured: {done.stderr.strip()[-200:]}")
        return
    figures.rates.append(json.loads(done.stdout.splitlines()[-1]))
    _say("  machine: " + "  ".join(f"{key} {value / 1e9:.4g}" for key, value in figures.rates[-1].items()) + " G/s")


def _say(words: str) -> None:
    print(words, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every = [*workloads.WORKLOADS, workloads.CONTEXT]
    parser.add_argument("--rounds", type=int, default=3, help="how often each engine is started and asked (default: 3)")
    parser.add_argument("--quick", action="store_true", help="one round without long contexts and 2 to 8 streams")
    parser.add_argument("--workloads", nargs="+", choices=every, metavar="NAME", help=f"of {', '.join(every)}")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS), help="ours (all)")
    parser.add_argument("--peers", nargs="*", metavar="WORD", help="only peers whose name has one of these words")
    parser.add_argument("--llama-cpp", type=Path, metavar="FOLDER", help="another build of llama.cpp")
    parser.add_argument("--vllm", metavar="PROGRAM", help="the vllm command, if it is not in PATH")
    parser.add_argument("--tokenizer", type=Path, metavar="FOLDER", help="Qwen's tokenizer, if there is no npm")
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache", help="for the checkpoint and its conversions")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of the page (default: docs)")
    parser.add_argument("--json", type=Path, help="file for all numbers (default: performance/results.json beside it)")
    return parser


def _chosen(args: argparse.Namespace) -> list[str]:
    if args.workloads:
        return list(args.workloads)
    if args.quick:
        return [name for name, workload in workloads.WORKLOADS.items() if not workload.is_once]
    return [*workloads.WORKLOADS, workloads.CONTEXT]


def main(words: Sequence[str] | None = None) -> int:
    """Run, write, and say which targets hold; returns the exit status, 0 even where one misses."""
    args = _parser().parse_args(words)
    cache = args.cache.resolve()
    try:
        model = make_checkpoint(cache / "bench", args.tokenizer)
    except CheckpointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    peers, absent = find_peers(model, cache, args.llama_cpp, args.vllm)
    if args.peers is not None:
        peers = [peer for peer in peers if any(word.lower() in peer.name.lower() for word in args.peers)]
    results = Results(describe_machine(), 1 if args.quick else args.rounds)
    results.absent = {peer.name: peer.reason for peer in absent}
    for name, why in results.absent.items():
        _say(f"not here: {name}: {why}")
    with tempfile.TemporaryDirectory() as logs:
        run = Run([*ours(model, tuple(args.precisions)), *peers], _chosen(args), results, Path(logs))
        for number in range(results.rounds):
            run.round(number)
            _write(results, args)
    for line in lines(results):
        _say(f"{ {True: 'holds ', False: 'MISSES', None: '?     '}[line.holds] } {line.what} ({line.beside})")
    return 0


def _write(results: Results, args: argparse.Namespace) -> None:
    page = document.write(results, args.docs)
    file = args.json or args.docs / "performance" / "results.json"
    file.write_text(json.dumps(asdict(results), indent=1) + "\n", encoding="utf-8")
    _say(f"wrote {page} and {file}")


if __name__ == "__main__":
    sys.exit(main())
