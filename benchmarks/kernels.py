"""How near the CPU's kernels come to the memory's speed, beside torch, in one run.

    python benchmarks/kernels.py [--only linear|prefill] [--seconds 0.5]

Every figure is a median, taken in turn with the others of its row, over tensors that together are far larger than the
cache. GB/s count the bytes of weights (scales and zeros included), once per call; "memory" is a
loop that only reads. Use the ratios: absolute figures move with the machine's neighbours.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from trifocal.kernels.base import TORCH
from trifocal.kernels.blocks import empty_blocks, store_rows
from trifocal.kernels.cpu.library import Library, load
from trifocal.kernels.cpu.ops import CpuKernels
from trifocal.kernels.int4 import Int4Weight

SHAPES = [(9728, 896), (896, 4864), (1152, 896), (151936, 896), (11008, 2048)]  # outputs, inputs
TOTAL = 400 << 20  # bytes that a figure is taken over

Call = Callable[[int], object]  # of the i-th copy
Part = Callable[[Library, float], Iterable[str]]  # seconds for each figure -> lines


def medians(calls: dict[str, Call], copies: int, seconds: float) -> dict[str, float]:
    """Seconds of each call, taken in turn."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call(0)
    until, turn = time.perf_counter() + seconds * len(calls), 0
    while turn < 3 * copies or time.perf_counter() < until:
        for name, call in calls.items():
            started = time.perf_counter()
            call(turn % copies)
            taken[name].append(time.perf_counter() - started)
        turn += 1
        if turn >= 3 and time.perf_counter() > until + 5:
            break
    return {name: statistics.median(values) for name, values in taken.items()}


def reader(library: Library) -> tuple[Call, int]:
    """A call that reads a part of a gigabyte, and the bytes it reads."""
    part, count = 32 << 20, 16
    memory = torch.ones(part * count, dtype=torch.uint8)
    read = library.read
    return lambda i: read(memory.data_ptr() + i % count * part, part, torch.get_num_threads()), part


def row(name: str, times: dict[str, float], num_bytes: int, read_bytes: int) -> str:
    """GB/s of each, and the first one's share of the memory's speed."""
    speed = read_bytes / times.pop("memory") / 1e9
    figures = {key: num_bytes / value / 1e9 for key, value in times.items()}
    text = "  ".join(f"{key} {value:6.1f}" for key, value in figures.items())
    return f"{name:34} {text}  memory {speed:5.1f}  {next(iter(figures.values())) / speed:5.0%}"


def random_int4(outputs: int, inputs: int) -> Int4Weight:
    """Groups of 128."""
    weight = Int4Weight.empty(outputs, inputs, 128)
    weight.words.random_()
    weight.scale.uniform_()
    weight.zero.random_(0, 16)
    return weight


def linear(library: Library, seconds: float) -> Iterable[str]:
    """Decoding: a few tokens against weights in each format."""
    for outputs, inputs in SHAPES:
        copies = max(2, TOTAL // (2 * outputs * inputs))
        for rows in (1, 4, 8, 16, 32):
            for name, case in (("bf16", plain_case), ("int8", int8_case), ("int4", int4_case)):
                calls, num_bytes, count = case(CpuKernels(library), rows, outputs, inputs, copies)
                read, read_bytes = reader(library)
                times = medians({**calls, "memory": read}, count, seconds)
                yield row(f"{name} {outputs} x {inputs}, {rows} tokens", times, num_bytes, read_bytes)


def in_blocks(words: Tensor) -> Tensor:
    """Weights as kernels read them, of rows of words."""
    blocks = empty_blocks(*words.shape)
    store_rows(blocks, 0, words)
    return blocks


Case = tuple[dict[str, Call], int, int]  # calls, the bytes of one, how many copies there are


def plain_case(ours: CpuKernels, rows: int, outputs: int, inputs: int, copies: int) -> Case:
    """bfloat16 weights."""
    x = torch.randn(rows, inputs).bfloat16()
    weights = [torch.randn(outputs, inputs).bfloat16() for _ in range(copies)]
    blocks = [in_blocks(weight.view(torch.int32)) for weight in weights]
    calls: dict[str, Call] = {
        "ours": lambda i: ours.linear_blocks(x, blocks[i], outputs, None),
        "torch": lambda i: TORCH.linear(x, weights[i], None),
    }
    return calls, 2 * outputs * inputs, copies


def int8_case(ours: CpuKernels, rows: int, outputs: int, inputs: int, copies: int) -> Case:
    """int8 weights."""
    x, scale = torch.randn(rows, inputs).bfloat16(), torch.rand(outputs)
    weights = [torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8) for _ in range(2 * copies)]
    blocks = [in_blocks(weight.view(torch.int32)) for weight in weights]
    calls: dict[str, Call] = {
        "ours": lambda i: ours.linear_int8_blocks(x, blocks[i], scale, None),
        "torch": lambda i: TORCH.linear_int8(x, weights[i], scale, None),
    }
    return calls, outputs * (inputs + 4), 2 * copies


def int4_case(ours: CpuKernels, rows: int, outputs: int, inputs: int, copies: int) -> Case:
    """int4 weights."""
    x = torch.randn(rows, inputs).bfloat16()
    weights = [random_int4(outputs, inputs) for _ in range(4 * copies)]
    num_bytes = sum(part.nbytes for part in (weights[0].words, weights[0].scale, weights[0].zero))
    calls: dict[str, Call] = {
        "ours": lambda i: ours.linear_int4_int8(x, weights[i], None),
        "bf16 activations": lambda i: ours.linear_int4(x, weights[i], None),
    }
    return calls, num_bytes, 4 * copies


def prefill(library: Library, seconds: float) -> Iterable[str]:
    """Many tokens, GFLOP/s, beside oneDNN's product in bfloat16."""
    for outputs, inputs in SHAPES[:2]:
        cases = {"bf16": plain_case, "int8": int8_case, "int4": int4_case}
        made = {name: case(CpuKernels(library), 512, outputs, inputs, 1)[0] for name, case in cases.items()}
        calls = {**{name: each["ours"] for name, each in made.items()}, "oneDNN": made["bf16"]["torch"]}
        times = medians(calls, 1, seconds)
        text = "  ".join(f"{name} {2 * 512 * outputs * inputs / each / 1e9:6.0f}" for name, each in times.items())
        yield f"{outputs} x {inputs}, 512 tokens: GFLOP/s  {text}"


PARTS = {"linear": linear, "prefill": prefill}


def run(parts: dict[str, Part], description: str | None) -> None:
    """The command line: measure the parts that are asked for, and print."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=parts)
    parser.add_argument("--seconds", type=float, default=0.5, help="for each figure")
    args = parser.parse_args()
    library = load()
    if library is None:
        raise SystemExit("there are no kernels to measure")
    print(f"kernels: {library.name}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name, part in parts.items():
        if args.only in (None, name):
            for line in part(library, args.seconds):
                print(line, flush=True)


if __name__ == "__main__":
    run(PARTS, __doc__)
