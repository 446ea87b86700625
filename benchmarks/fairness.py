"""Whether a request with a hundred pictures stalls short text requests.

    python benchmarks/fairness.py [--pictures 100] [--size 140] [--clients 4] [--rounds 3] [--model FOLDER]

`--clients` clients ask short text questions without a pause (32 words, 64 tokens), first alone, then while `--rounds`
requests of `--pictures` pictures each, all different, come one after another. Only text requests that spent at least
half of their time beside a request with pictures, from its sending to its first token, are compared.

Expected before measuring: preparing pictures takes threads of the server process and no steps of the engine, so what
text requests lose depends on the scheduler alone: with each of its steps filled up with prompt tokens and vision work,
a step takes many times as long as one that only decodes. Bound: the median time per token beside pictures is at most
1.5 times that of text alone; the exit status is 1 beyond.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path

from trifocal.bench.load import Measured, Target, run_load
from trifocal.bench.workload import Question, Shape, make_questions
from trifocal.cli.local_server import LocalServer

BUILT_IN = Path(__file__).parents[1] / "trifocal" / "demo" / "model"
BOUND = 1.5
Window = tuple[float, float]


def time_per_token(measured: Measured) -> float:
    """Seconds a token after the first."""
    return (measured.chunk_times[-1] - measured.chunk_times[0]) / (measured.num_output_tokens - 1)


def longest_gap(measured: Measured) -> float:
    """Seconds between two pieces of text, at most."""
    times = measured.chunk_times
    return max(later - earlier for earlier, later in pairwise(times))


def is_beside(measured: Measured, windows: list[Window]) -> bool:
    """Whether at least half of the time between first and last token lies in the windows."""
    first, last = measured.chunk_times[0], measured.chunk_times[-1]
    shared = sum(max(0.0, min(last, end) - max(first, start)) for start, end in windows)
    return shared >= (last - first) / 2


async def text_alone(target: Target, questions: list[Question], clients: int) -> list[Measured]:
    """All questions, `clients` at a time."""
    answers = await run_load(target, questions, clients)
    failed = [answer.error for answer in answers if answer.error]
    if failed:
        raise SystemExit(f"a text request failed: {failed[0]}")
    return answers


async def text_beside(
    target: Target, questions: list[Question], clients: int, pictures: list[Question]
) -> tuple[list[Measured], list[Window]]:
    """The same while the requests with pictures come, one after another; and when they were taken in."""
    text = asyncio.create_task(text_alone(target, questions, clients))
    await asyncio.sleep(1.0)
    windows = []
    for question in pictures:
        [answer] = await run_load(target, [question], 1)
        if answer.error:
            raise SystemExit(f"the request with pictures failed: {answer.error}")
        windows.append((answer.start, answer.chunk_times[0] if answer.chunk_times else answer.end))
        if text.done():
            print("the text requests ended before those with pictures; raise --questions", flush=True)
            break
    return await text, windows


def report(name: str, answers: list[Measured]) -> float:
    """Print one line, return the median time per token."""
    times = sorted(map(time_per_token, answers))
    median = statistics.median(times)
    gap = max(map(longest_gap, answers))
    print(
        f"{name}: {len(answers)} requests, time per token median {1e3 * median:.1f} ms, "
        f"worst {1e3 * times[-1]:.1f} ms, longest gap {1e3 * gap:.0f} ms",
        flush=True,
    )
    return median


def main() -> int:
    """Measure and report; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(BUILT_IN))
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--size", type=int, default=140, help="pixels along each side of a picture")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--questions", type=int, default=400, help="text requests in each half")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    text = Shape(args.questions, args.clients, input_words=32, output_tokens=64)
    heavy = Shape(args.rounds, 1, input_words=8, output_tokens=4, num_images=args.pictures, image_size=(args.size,) * 2)
    seed = str(time.time_ns())
    with LocalServer([args.model, "--served-model-name", "m"]) as server:
        target = Target(server.url, "m")
        asyncio.run(text_alone(target, make_questions(text, seed + "warm", 8), args.clients))
        alone = asyncio.run(text_alone(target, make_questions(text, seed + "alone"), args.clients))
        pictures = make_questions(heavy, seed + "pictures")
        answers, windows = asyncio.run(
            text_beside(target, make_questions(text, seed + "beside"), args.clients, pictures)
        )
    beside = [answer for answer in answers if is_beside(answer, windows)]
    usual = report("text alone", alone)
    if not beside:
        print("no text request ran beside pictures; raise --pictures or --rounds")
        return 1
    spans = ", ".join(f"{end - start:.1f}" for start, end in windows)
    grown = report(f"beside {args.pictures} pictures (taken in within {spans} s)", beside) / usual
    print(f"time per token beside pictures: {grown:.2f} of that alone (bound {BOUND})")
    return 0 if grown <= BOUND else 1


if __name__ == "__main__":
    sys.exit(main())
