"""What this machine reaches now, in a process of its own: `python -m benchmarks.peers.rates` prints a JSON line.

Reading: two gigabytes by all threads, piece after piece. Products: those of one layer for 512 tokens, over weights
that together are larger than the cache; bfloat16 as torch computes it, int8 by the faster of the two ways that torch
has. Figures are medians; neighbours on the machine move them by the minute, so they are taken beside each contender.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict

import torch
import torch.nn.functional as F

from benchmarks.peers.cost import LAYER_SHAPES, Rates
from trifocal.kernels.cpu.library import load

TOKENS, COPIES = 512, 4
READ_BYTES, PIECE = 2 << 30, 128 << 20
_FLOP = 2.0 * TOKENS * sum(outputs * inputs for outputs, inputs in LAYER_SHAPES)


def seconds(call: Callable[[int], object], turns: int) -> float:
    """Median time of `call(turn)`; the first is not counted."""
    call(0)
    taken = []
    for turn in range(turns):
        started = time.perf_counter()
        call(turn)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def read_rate() -> float:
    """Bytes a second."""
    memory = torch.ones(READ_BYTES, dtype=torch.uint8)
    pieces = READ_BYTES // PIECE
    library = load()
    if library is not None:
        read, threads = library.read, torch.get_num_threads()
        return PIECE / seconds(lambda i: read(memory.data_ptr() + i % pieces * PIECE, PIECE, threads), 2 * pieces)
    words = memory.view(torch.int64).view(pieces, -1)
    return PIECE / seconds(lambda i: words[i % pieces].sum(), 2 * pieces)


def bf16_rate() -> float:
    """Operations a second."""
    weights = [[torch.randn(o, i).bfloat16() for o, i in LAYER_SHAPES] for _ in range(COPIES)]
    inputs = [torch.randn(TOKENS, i).bfloat16() for _, i in LAYER_SHAPES]

    def layer(turn: int) -> None:
        for x, weight in zip(inputs, weights[turn % COPIES], strict=True):
            F.linear(x, weight)

    return _FLOP / seconds(layer, 3 * COPIES)


def int8_rate() -> float:
    """Operations a second."""
    weights = [
        [torch.randint(-127, 128, (o, i), dtype=torch.int8) for o, i in LAYER_SHAPES] for _ in range(COPIES)
    ]  # fmt: skip
    rates = [_FLOP / seconds(_plain_int8(weights), 3 * COPIES)]
    with suppress(RuntimeError, AttributeError):  # a torch without oneDNN
        rates.append(_FLOP / seconds(_packed_int8(weights), 3 * COPIES))
    return max(rates)


def _plain_int8(weights: list[list[torch.Tensor]]) -> Callable[[int], None]:
    inputs = [torch.randint(-127, 128, (TOKENS, i), dtype=torch.int8) for _, i in LAYER_SHAPES]

    def layer(turn: int) -> None:
        for x, weight in zip(inputs, weights[turn % COPIES], strict=True):
            torch._int_mm(x, weight.t())

    return layer


def _packed_int8(weights: list[list[torch.Tensor]]) -> Callable[[int], None]:
    packed = [[torch.ops.onednn.qlinear_prepack(weight, None) for weight in layer] for layer in weights]
    inputs = [torch.randint(0, 256, (TOKENS, i), dtype=torch.uint8) for _, i in LAYER_SHAPES]
    scales = [torch.rand(o) for o, _ in LAYER_SHAPES]
    zeros = [torch.zeros(o, dtype=torch.int64) for o, _ in LAYER_SHAPES]

    def layer(turn: int) -> None:
        for x, weight, scale, zero in zip(inputs, packed[turn % COPIES], scales, zeros, strict=True):
            torch.ops.onednn.qlinear_pointwise(
                x, 0.01, 128, weight, scale, zero, None, 1.0, 0, torch.bfloat16, "none", [], ""
            )

    return layer


if __name__ == "__main__":
    with torch.inference_mode():
        print(json.dumps(asdict(Rates(read_rate(), bf16_rate(), int8_rate()))))
