"""Hundreds of inputs that want to break the server, sent to one on the built-in model.

    python benchmarks/hostile.py [--seed 0] [--rounds 1] [--minutes N] [--generated 10] [--only KIND] [--list]

Pictures, clips, data: URLs, bodies, numbers, templates and control tokens, broken at random from a seed, URLs into the
machine and its network, and a web server that cheats (`tools/hostile`), and requests generated from the server's own
OpenAPI document, which their answers must conform to. Promised, and checked here: no answer is a 5xx, each comes within
its time, the engine is never restarted, nothing is fetched from where it must not, good requests are answered as
before, and memory has grown by 64 MiB at most since two rounds of everything: what those fill (caches, pools, the
heaps of threads) is told beside it. The exit status is 1 if any of it does not hold.

Each round sends every input with another seed; `--minutes` goes on with new seeds for so long.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tools.hostile.attack import attack
from tools.hostile.corpus import all_cases


def main() -> int:
    """Attack and report; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--warm-up", type=int, default=2, help="rounds before memory is looked at")
    parser.add_argument(
        "--generated", type=int, default=10, help="requests of each operation, right and wrong, a round"
    )
    parser.add_argument("--only", help="beginning of the names to send, e.g. picture/PNG; or document")
    parser.add_argument("--list", action="store_true", help="print the names and end")
    args = parser.parse_args()
    cases = [case for case in all_cases() if case.name.startswith(args.only or "")]
    if args.list:
        print(*(case.name for case in cases), sep="\n")
        return 0
    seeds = itertools.count(args.seed) if args.minutes else range(args.seed, args.seed + args.rounds)
    generated = args.generated if args.only in (None, "document") else 0
    seconds = args.minutes and 60 * args.minutes
    report = attack(cases, seeds, generated=generated, seconds=seconds, warm_up=args.warm_up)
    print(f"{len(cases)} inputs and those generated from the document")
    print(report)
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
