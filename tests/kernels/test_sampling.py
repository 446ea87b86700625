"""Tokens and log-probabilities by kernels are those by torch, for every instruction set of this machine."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.kernels.isa import Grid
from tests.worker.test_sampler import state
from trifocal.kernels.base import Draws
from trifocal.kernels.cpu.ops import CpuKernels
from trifocal.worker import sampler as sampling
from trifocal.worker.input_batch import SequenceState
from trifocal.worker.sampler import Sampled, Sampler

SIZES = [1, 2, 7, 15, 16, 17, 33, 128, 333, 1023, 1025, 5000]


def logits_of(rng: np.random.Generator, kind: str, rows: int, vocab: int) -> Tensor:
    x = rng.normal(0, rng.choice([0.01, 1.0, 3.0, 100.0]), (rows, vocab))
    if kind == "tied":
        x = np.round(x)
    elif kind == "equal":
        x[:] = x[:, :1]
    elif kind == "mostly equal":
        x[rng.random(x.shape) < 0.9] = 0.25
    elif kind == "rising":
        x = np.sort(x)
    elif kind == "falling":
        x = -np.sort(-x)
    elif kind == "peaked":
        x[np.arange(rows), rng.integers(0, vocab, rows)] += 40
    elif kind == "impossible":
        x[rng.random(x.shape) < 0.5] = -np.inf
        x[:, rng.integers(vocab)] = 1
    return torch.from_numpy(x.astype(np.float32))


KINDS = ["random", "tied", "equal", "mostly equal", "rising", "falling", "peaked", "impossible"]


def any_state(rng: np.random.Generator, name: str, vocab: int) -> SequenceState:
    def maybe(share: float, default: Any, *values: Any) -> Any:
        return values[rng.integers(len(values))] if rng.random() < share else default

    return state(
        name,
        prompt=rng.integers(0, vocab, 5).tolist(),
        output=rng.integers(0, vocab, rng.integers(0, 5)).tolist(),
        seed=int(rng.integers(1 << 62)),
        temperature=maybe(0.5, 1.0, 0.0, 1e-4, 0.1, 0.7, 2.0, 1e6, 1e38),
        top_k=maybe(0.5, -1, 1, 2, 5, 20, 300, 1024, 1025, 3000, vocab, max(vocab - 1, 1)),
        top_p=maybe(0.5, 1.0, 0.01, 0.25, 0.5, 0.75, 0.8, 0.95, 0.999, 1e-9),
        min_p=maybe(0.3, 0.0, 0.5, 1.0, 0.1, 0.01, 1e-12),
        repetition_penalty=maybe(0.2, 1.0, 1.3),
        frequency_penalty=maybe(0.2, 0.0, 0.7),
        logit_bias=maybe(0.2, None, {int(rng.integers(vocab)): 3.3}),
        logprobs=maybe(0.3, None, -1, 0, 1, 5, 20, vocab + 3),
    )


def both(kernels: CpuKernels, logits: Tensor, states: list[SequenceState], vocab: int) -> tuple[Sampled, Sampled]:
    return Sampler(vocab, kernels)(logits.clone(), states), Sampler(vocab)(logits.clone(), states)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_tokens_and_log_probabilities(grid: Grid, kernels: CpuKernels, kind: str) -> None:
    """Ids, ranks and values, with padding behind the vocabulary that must not be looked at."""
    rng = np.random.default_rng(KINDS.index(kind))
    for vocab in grid.of(whole=SIZES, edges=[1, 15, 16, 17, 1025]):
        logits = logits_of(rng, kind, int(rng.integers(1, 7)), vocab + int(rng.integers(20)))
        logits[:, vocab:] = rng.choice([0, 1e9, np.nan])
        states = [any_state(rng, f"s{row}", vocab) for row in range(len(logits))]
        ours, expected = both(kernels, logits, states, vocab)
        assert ours == expected


def test_the_same_for_a_large_vocabulary(grid: Grid, kernels: CpuKernels, three_threads: None) -> None:
    settings: list[dict[str, Any]] = [
        {"top_k": 20, "top_p": 0.8, "temperature": 0.7}, {"top_p": 0.95}, {"top_k": 5000, "top_p": 0.5},
        {"min_p": 0.1, "logprobs": 5},
    ]  # fmt: skip
    states = [state(f"s{i}", seed=i, **each) for i, each in enumerate(settings)]
    for kind in grid.of(whole=["random", "equal", "peaked"], edges=["random"]):
        logits = logits_of(np.random.default_rng(9), kind, 4, 151_936)
        ours, expected = both(kernels, logits, states, 151_936)
        assert ours == expected


def test_sums_of_weights_are_the_same_to_the_last_bit(kernels: CpuKernels) -> None:
    """Whole numbers: any level that came out otherwise would be seen."""
    for scale in (0.1, 1, 5, 50):
        logits = torch.randn(3, 100_003, generator=torch.Generator().manual_seed(3)) * scale
        found = kernels.likely(logits, 100_003, [0, 2], [5, 6], [0, 3])
        assert found == [sampling._likely(logits[0], 5, 0), sampling._likely(logits[2], 6, 3)]


def every_token(kernels: CpuKernels | None, row: list[float], top_k: int, top_p: float, steps: int = 64) -> set[int]:
    """What evenly spread noise picks from a row at temperature 1."""
    count, vocab = steps, len(row)
    draws = Draws(
        torch.full((count,), math.log2(math.e)),
        torch.full((count,), -torch.inf),
        torch.full((count,), top_k),
        torch.full((count,), math.ceil(top_p * 2**53)),
        torch.arange(count) * (2**53 // count),
    )
    logits = torch.tensor(row).repeat(count, 1)
    if kernels is None:
        return set(sampling._draw(logits, logits.amax(-1), draws).tolist())
    found = kernels.choose(logits, vocab, draws)
    assert found is not None
    return set(found[0].tolist())


def test_of_equal_ones_the_lower_ids_are_kept(kernels: CpuKernels) -> None:
    row = [0.0, 1.0, 1.0, 2.0, 1.0, 0.0, 1.0]
    for how in (kernels, None):
        assert every_token(how, row, 3, 1.0) == {1, 2, 3}
        assert every_token(how, [0.5] * 40, 5, 1.0) == {0, 1, 2, 3, 4}
        assert every_token(how, [0.5] * 1100, 1050, 1.0, 1300) == set(range(1050))


def test_top_p_at_an_exact_border(kernels: CpuKernels) -> None:
    """Half of equal ones have half of the probability: no more are kept, and one more if a hair is missing."""
    for how, num_equal in product((kernels, None), (2, 4, 8, 256)):
        row, half = [1.0] * num_equal, set(range(num_equal // 2))
        assert every_token(how, row, num_equal, 0.5, 2 * num_equal) == half
        assert every_token(how, row, num_equal, float(np.nextafter(0.5, 1)), 1024) == half | {num_equal // 2}
        assert every_token(how, row, num_equal, float(np.nextafter(0.5, 0)), 2 * num_equal) == half


def test_the_draw_at_its_exact_borders(kernels: CpuKernels) -> None:
    """The n-th of 1000 equal tokens begins where the noise, a fraction of 2**53, reaches n / 1000."""
    vocab, unit = 1000, 1 << 53
    noises = [noise for n in range(1, vocab) for noise in (n * unit // vocab, n * unit // vocab + 1)]
    expected = [int(Fraction(noise, unit) * vocab * 2**42) // 2**42 for noise in noises]
    count = len(noises)
    draws = Draws(
        torch.ones(count), torch.full((count,), -torch.inf), torch.full((count,), vocab),
        torch.full((count,), unit), torch.tensor(noises),
    )  # fmt: skip
    logits = torch.zeros(count, vocab)
    found = kernels.choose(logits, vocab, draws)
    assert found is not None and found[0].tolist() == expected
    assert sampling._draw(logits, logits.amax(-1), draws).tolist() == expected
    last = Draws(*(each[:1] for each in (draws.scale, draws.floor, draws.top_k, draws.top_p)), torch.tensor([unit - 1]))
    found = kernels.choose(logits[:1], vocab, last)
    assert found is not None and found[0].tolist() == [vocab - 1]


def test_rows_without_finite_logits(kernels: CpuKernels) -> None:
    for bad, place in product((math.nan, math.inf, -math.inf), (0, 40, 332)):
        logits = torch.randn(3, 333, generator=torch.Generator().manual_seed(0))
        logits[1, place] = bad
        if bad == -math.inf:
            logits[1] = bad
        states = [state(f"s{i}", seed=i, top_p=0.9, logprobs=2) for i in range(3)]
        ours, expected = both(kernels, logits, states, 333)
        assert set(ours.errors) == {1} and ours == expected


def test_a_logit_that_is_no_number_is_told_though_its_token_is_forbidden(kernels: CpuKernels) -> None:
    """min_tokens hides it from the choice, but not from log-probabilities."""
    logits = torch.zeros(1, 40)
    logits[0, 3] = math.nan
    states = [state(min_tokens=2, stop_ids=frozenset({3}), logprobs=1)]
    for sampled in both(kernels, logits, states, 40):
        assert set(sampled.errors) == {0} and not sampled.logprobs


def test_what_is_too_unlikely_to_have_a_weight_is_not_chosen(kernels: CpuKernels) -> None:
    row = [-40.0, 0.0, -28.0, -200.0]
    for how in (kernels, None):
        assert every_token(how, row, 4, 1.0) == {1}
        assert every_token(how, row, 4, 1e-300) == {1}
