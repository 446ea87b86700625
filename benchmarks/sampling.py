"""What choosing tokens costs beside arg-max: `python -m benchmarks.sampling [--vocab 151936] [--rows 1 8]`.

With --model FOLDER: whole steps of a model (no weights are needed with --load-format dummy) in turn with greedy ones,
and the share of greedy speed that each setting keeps; the exit status is 1 below 0.95. Otherwise:

The sampler alone, for settings that requests come with, on rows of logits that are peaked (one token has nearly all of
the probability) and flat. Every figure is a median of --repeat calls, taken in turn with those of greedy rows: how many
milliseconds a call takes, how many more than greedy ones, and how many torch takes where it chooses alone (--torch).

Expected before measuring: reading a row of 151,936 takes 20 us; computing weights 50 us; dealing them out by level, for
top_p among flat logits, 100 us. So 0.3 ms a row at most, 0.1 ms with top_k. Bound: 0.5 ms a row more than greedy, at
which a step of 14 ms (int4, half a billion parameters) keeps 0.96 of its speed; the exit status is 1 beyond.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from benchmarks.step import Step, random_prompts, steps, watch_steps
from trifocal.kernels.base import TORCH, Kernels
from trifocal.kernels.cpu.library import load
from trifocal.kernels.cpu.ops import CpuKernels
from trifocal.llm import LLM
from trifocal.sampling_params import SamplingParams
from trifocal.types import Prompt, Request, ScheduledNew
from trifocal.worker.input_batch import SequenceState
from trifocal.worker.sampler import Sampler

GREEDY = "greedy"
SETTINGS: dict[str, dict[str, Any]] = {
    GREEDY: {"temperature": 0.0},
    "0.7, top_p 0.8, top_k 20": {"temperature": 0.7, "top_p": 0.8, "top_k": 20},
    "top_p 0.95": {"top_p": 0.95},
    "temperature 1": {},
    "min_p 0.1": {"min_p": 0.1},
    "repetition_penalty 1.05": {"temperature": 0.0, "repetition_penalty": 1.05},
    "5 log-probabilities": {"temperature": 0.0, "logprobs": 5},
}
BOUND_MS = 0.5  # a row


def logits_of(kind: str, rows: int, vocab: int) -> Tensor:
    """Rows of normal numbers: flat ones as they are, peaked ones wider and with one that leads by far."""
    made = torch.randn(rows, vocab, generator=torch.Generator().manual_seed(0))
    if kind == "flat":
        return made
    made *= 2.5
    made[:, vocab // 2] = 20.0
    return made


def states_of(settings: dict[str, Any], rows: int, vocab: int) -> list[SequenceState]:
    """Sequences with a prompt of 500 tokens and 100 that were generated."""
    tokens = torch.randint(0, vocab, (600,), generator=torch.Generator().manual_seed(1)).tolist()
    params = SamplingParams(max_tokens=None, **settings)
    requests = [Request(str(row), Prompt(tokens[:500]), params, frozenset(), row) for row in range(rows)]
    return [SequenceState.start(ScheduledNew(request, tokens[500:])) for request in requests]


def medians(kernels: Kernels, logits: Tensor, repeat: int) -> dict[str, float]:
    """Milliseconds of a call for each of the settings, taken in turn."""
    rows, vocab = logits.shape
    sampler = {name: Sampler(vocab, kernels) for name in SETTINGS}
    states = {name: states_of(settings, rows, vocab) for name, settings in SETTINGS.items()}
    taken: dict[str, list[float]] = {name: [] for name in SETTINGS}
    for _ in range(repeat + 1):
        for name, times in taken.items():
            fresh = logits.clone()
            started = time.perf_counter()
            sampler[name](fresh, states[name])
            times.append(1e3 * (time.perf_counter() - started))
    return {name: statistics.median(times[1:]) for name, times in taken.items()}


def step_times(llm: LLM, rows: int, settings: dict[str, Any], tokens: int) -> list[float]:
    """Milliseconds from one decoding step to the next."""
    steps.clear()
    params = SamplingParams(max_tokens=tokens, ignore_eos=True, **settings)
    llm.generate(random_prompts(rows, 32), params, use_tqdm=False)
    decoding: list[Step] = [step for step in steps if step.tokens == rows]
    return [1e3 * (after.began - one.began) for one, after in pairwise(decoding)][2:]


def whole_steps(args: argparse.Namespace) -> int:
    """Measure a model; returns the exit status."""
    watch_steps()
    is_good = True
    with LLM(
        args.model, dtype="bfloat16", quantization=args.quantization, load_format=args.load_format, max_model_len=1024
    ) as llm:
        for rows in args.rows:
            taken: dict[str, list[float]] = {name: [] for name in SETTINGS}
            for _ in range(args.repeat):
                for name, settings in SETTINGS.items():
                    taken[name] += step_times(llm, rows, settings, 20)
            greedy = statistics.median(taken[GREEDY])
            for name, times in taken.items():
                took = statistics.median(times)
                print(f"{rows} streams, {name:24}: {took:6.2f} ms a step, {greedy / took:.3f} of greedy", flush=True)
                is_good &= greedy / took >= 0.95
    return 0 if is_good else 1


def main() -> int:
    """Measure and report; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=151936)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--repeat", type=int, default=30)
    parser.add_argument("--torch", action="store_true", help="measure it too")
    parser.add_argument("--model", metavar="FOLDER")
    parser.add_argument("--load-format", default="auto")
    parser.add_argument("--quantization")
    args = parser.parse_args()
    if args.model:
        return whole_steps(args)
    library = load()
    if library is None:
        raise SystemExit("there are no kernels to measure")
    print(f"kernels: {library.name}, torch {torch.__version__}, {torch.get_num_threads()} threads, {args.vocab} tokens")
    is_good = True
    for kind in ("peaked", "flat"):
        for rows in args.rows:
            logits = logits_of(kind, rows, args.vocab)
            ours = medians(CpuKernels(library), logits, args.repeat)
            theirs = medians(TORCH, logits, max(3, args.repeat // 10)) if args.torch else {}
            for name, took in ours.items():
                more = took - ours[GREEDY]
                beside = f", torch {theirs[name]:7.2f} ms" if theirs else ""
                print(f"{kind} x {rows}, {name:24}: {took:6.3f} ms, {more:+6.3f} ms{beside}", flush=True)
                is_good &= more <= BOUND_MS * rows
    return 0 if is_good else 1


if __name__ == "__main__":
    with torch.inference_mode():
        sys.exit(main())
