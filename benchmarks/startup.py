"""How long `trifocal serve` takes until it is ready, against `python -c "import torch, transformers"`.

    python benchmarks/startup.py [--model FOLDER] [--runs 5]

Expected before measuring: importing torch is most of either; the server imports its own half while the engine process
imports torch, so a start should cost one such import plus less than a second. Bound: twice the import plus one second.
Both are run in turn, medians are reported; the exit status is 1 if the bound does not hold.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from trifocal.cli.local_server import LocalServer

BUILT_IN = Path(__file__).parents[1] / "trifocal" / "demo" / "model"


def time_import() -> float:
    """Seconds of a whole process that imports torch and transformers."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch, transformers"], check=True)
    return time.perf_counter() - started


def time_serve(model: str) -> float:
    """Seconds from the command to the first positive answer of /health."""
    started = time.perf_counter()
    with LocalServer([model]):
        return time.perf_counter() - started


def main() -> int:
    """Measure and report; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(BUILT_IN))
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    imports, starts = [], []
    for run in range(args.runs + 1):
        imports.append(time_import())
        starts.append(time_serve(args.model))
        note = "  (not counted: cold files)" if run == 0 else ""
        print(f"import {imports[-1]:.2f} s   serve {starts[-1]:.2f} s{note}", flush=True)
    usual, start = statistics.median(imports[1:]), statistics.median(starts[1:])
    bound = 2 * usual + 1
    print(f"median: import {usual:.2f} s, serve {start:.2f} s, bound {bound:.2f} s: {start / bound:.2f} of the bound")
    return 0 if start <= bound else 1


if __name__ == "__main__":
    sys.exit(main())
