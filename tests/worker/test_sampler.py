"""The sampler against a slow one that does a row at a time with numpy, in the order that vLLM documents."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from trifocal.sampling_params import SamplingParams
from trifocal.types import Prompt, Request, ScheduledNew
from trifocal.worker.input_batch import SequenceState
from trifocal.worker.logits_processors import apply_all
from trifocal.worker.sampler import Row, Sampler, _argmax, _levels, _top_k_top_p, _weights

VOCAB, PADDED = 40, 48


def state(name: str = "a", prompt: list[int] | None = None, output: list[int] | None = None, seed: int = 0,
          stop_ids: frozenset[int] = frozenset(), bad_word_ids: Any = (), **params: Any) -> SequenceState:  # fmt: skip
    sampling = SamplingParams(max_tokens=1000, **params)
    request = Request(name, Prompt(prompt or [1]), sampling, stop_ids, seed, bad_word_ids=bad_word_ids)
    return SequenceState.start(ScheduledNew(request, output or []))


def sample(logits: torch.Tensor, states: list[SequenceState], sampler: Sampler | None = None) -> list[int]:
    return (sampler or Sampler(VOCAB))(logits.clone(), states).token_ids


def random_logits(rng: np.random.Generator, rows: int) -> torch.Tensor:
    return torch.from_numpy(rng.normal(0, 3, (rows, PADDED)).astype(np.float32))


def random_state(rng: np.random.Generator, name: str) -> SequenceState:
    def maybe(value: object, default: object) -> object:
        return value if rng.random() < 0.5 else default

    return state(
        name,
        prompt=rng.integers(0, VOCAB, 5).tolist(),
        output=rng.integers(0, 8 if rng.random() < 0.5 else VOCAB, rng.integers(0, 8)).tolist(),
        seed=int(rng.integers(1 << 62)),
        stop_ids=frozenset(rng.integers(0, VOCAB, 3).tolist()),
        temperature=maybe(float(rng.uniform(0.1, 2)), 0.0 if rng.random() < 0.5 else 1.0),
        top_k=maybe(int(rng.integers(1, VOCAB + 5)), -1),
        top_p=maybe(float(rng.uniform(0.05, 1)), 1.0),
        min_p=maybe(float(rng.uniform(0, 0.5)), 0.0),
        repetition_penalty=maybe(float(rng.uniform(0.5, 2)), 1.0),
        presence_penalty=maybe(float(rng.uniform(-2, 2)), 0.0),
        frequency_penalty=maybe(float(rng.uniform(-2, 2)), 0.0),
        logit_bias=maybe({int(rng.integers(VOCAB)): float(rng.uniform(-50, 5))}, None),
        min_tokens=maybe(int(rng.integers(0, 8)), 0),
        allowed_token_ids=maybe(rng.integers(0, VOCAB, 20).tolist(), None),
        bad_word_ids=maybe(tuple(tuple(rng.integers(0, 3, rng.integers(1, 3)).tolist()) for _ in range(4)), ()),
    )


def reference(row: torch.Tensor, of: SequenceState) -> np.ndarray:
    """The distribution that the next token is drawn from, float64 [VOCAB]."""
    params, output = of.request.params, of.output_token_ids.tolist()
    values = row.numpy().astype(np.float64)[:VOCAB]
    if params.allowed_token_ids is not None:
        values[[token_id for token_id in range(VOCAB) if token_id not in params.allowed_token_ids]] = -np.inf
    for *start, last in of.request.bad_word_ids:
        if output[len(output) - len(start) :] == start and len(start) <= len(output):
            values[last] = -np.inf
    for token_id, bias in (params.logit_bias or {}).items():
        values[token_id] += bias
    if len(output) < params.min_tokens:
        values[list(of.request.stop_token_ids)] = -np.inf
    for token_id in set(output) | set(of.request.prompt.token_ids):
        scale = params.repetition_penalty
        values[token_id] = values[token_id] / scale if values[token_id] > 0 else values[token_id] * scale
    for token_id in set(output):
        values[token_id] -= params.frequency_penalty * output.count(token_id) + params.presence_penalty
    if params.temperature == 0:
        return np.eye(VOCAB)[values.argmax()]
    probs = np.exp((values - values.max()) / params.temperature)
    probs[probs < params.min_p * probs.max()] = 0
    order = np.argsort(-probs)
    if params.top_k > 0:
        probs[order[params.top_k :]] = 0
    probs /= probs.sum()
    mass = 0.0
    for token_id in order:
        if mass >= params.top_p and params.top_p < 1:
            probs[token_id] = 0
        mass += probs[token_id]
    return probs / probs.sum()


def draw(probs: np.ndarray, of: SequenceState) -> int:
    """What the uniform number of this seed and output index picks."""
    counter = [0, 0, 0, of.num_output_tokens]
    noise = np.random.Generator(np.random.Philox(key=of.request.seed, counter=counter)).random()
    return int(np.searchsorted(probs.cumsum(), noise, side="right"))


def test_every_row_is_what_the_slow_sampler_gives() -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        logits = random_logits(rng, 12)
        states = [random_state(rng, f"s{index}") for index in range(12)]
        chosen = sample(logits, states)
        for row, of, token_id in zip(logits, states, chosen, strict=True):
            assert token_id == draw(reference(row, of), of)


def test_drafts_choose_what_their_tokens_would() -> None:
    """Row by row, noise, counts and words included; nothing of a draft is left behind."""
    rng = np.random.default_rng(20)
    for _ in range(40):
        of, longer = random_state(rng, "a"), None
        of.drafts = rng.integers(0, 8, 4).tolist()
        logits = random_logits(rng, 5)
        chosen = sample(logits, [of])
        for num, (row, token_id) in enumerate(zip(logits, chosen, strict=True)):
            output = [*of.output_token_ids.tolist(), *of.drafts[:num]]
            longer = SequenceState.start(ScheduledNew(of.request, output))
            assert token_id == draw(reference(row, longer), longer)
        again = sample(logits, [of])
        assert again == chosen


def test_what_excludes_every_token_is_told() -> None:
    states = [state(allowed_token_ids=[3], bad_word_ids=((3,),)), state("b")]
    sampled = Sampler(VOCAB)(torch.zeros(2, PADDED), states)
    assert list(sampled.errors) == [0] and "the request's parameters exclude every token" in sampled.errors[0]


def test_logprobs_of_given_tokens() -> None:
    logits = random_logits(np.random.default_rng(21), 3)
    found = Sampler(VOCAB).logprobs_of(logits.clone(), [4, 9, VOCAB], 2)
    for entry, token_id, row in zip(found[:2], (4, 9), logits[:, :VOCAB].double().log_softmax(dim=-1), strict=False):
        assert entry.token_ids == [token_id, *row.topk(2).indices.tolist()]
        assert entry.logprobs == pytest.approx([float(row[token_id]), *row.topk(2).values.tolist()], abs=1e-5)
        assert entry.rank == 1 + int((row > row[token_id]).sum())
    assert found[2].logprobs[0] < -1e9, "the tokenizer does not know it"
    with pytest.raises(ValueError, match="no valid probabilities"):
        Sampler(VOCAB).logprobs_of(logits * torch.nan, [4, 9, 1], 2)


def test_a_row_is_the_same_alone_and_in_any_company_and_order() -> None:
    rng = np.random.default_rng(1)
    logits = random_logits(rng, 16)
    states = [random_state(rng, f"s{index}") for index in range(16)]
    alone = [sample(logits[i : i + 1], [states[i]])[0] for i in range(16)]
    assert sample(logits, states) == alone
    for _ in range(10):
        order = rng.permutation(16)[: rng.integers(1, 17)]
        assert sample(logits[order], [states[i] for i in order]) == [alone[i] for i in order]


def generate(sampler: Sampler, of: SequenceState, num_tokens: int, rng: np.random.Generator) -> list[int]:
    for row in random_logits(rng, num_tokens):
        of.append(sample(row[None], [of], sampler)[0])
    return of.output_token_ids.tolist()


def test_a_seed_is_a_stream_that_goes_on_after_preemption() -> None:
    settings = {"seed": 7, "frequency_penalty": 1.5, "repetition_penalty": 1.3}
    whole = generate(Sampler(VOCAB), state(**settings), 30, np.random.default_rng(2))
    assert whole == generate(Sampler(VOCAB), state(**settings), 30, np.random.default_rng(2))
    assert whole != generate(Sampler(VOCAB), state(**{**settings, "seed": 8}), 30, np.random.default_rng(2))
    sampler, rng = Sampler(VOCAB), np.random.default_rng(2)
    begun = generate(sampler, state(**settings), 11, rng)
    assert generate(sampler, state(output=begun, **settings), 19, rng) == whole


def test_an_id_used_again_starts_with_fresh_counts() -> None:
    sampler = Sampler(VOCAB)
    logits = torch.zeros(1, PADDED)
    logits[0, 3] = 1.0
    assert sample(logits, [state(output=[3] * 9, temperature=0.0, frequency_penalty=2.0)], sampler) != [3]
    assert sample(logits, [state(temperature=0.0, frequency_penalty=2.0)], sampler) == [3]


@pytest.mark.parametrize("filters", [{}, {"top_p": 0.8, "top_k": 5}, {"min_p": 0.2, "temperature": 0.7}])
def test_frequencies_are_the_probabilities(filters: dict[str, float]) -> None:
    num_draws = 10_000
    row = torch.tensor([2.0, 1.5, 1.0, 0.5, 0.0, -0.5, -1.0, -3.0])
    states = [state(output=[0] * index, seed=5, **filters) for index in range(200)]
    counts = np.zeros(8)
    for seed in range(num_draws // 200):
        for each in states:
            object.__setattr__(each.request, "seed", seed)
        counts += np.bincount(Sampler(8)(row.repeat(200, 1), states).token_ids, minlength=8)
    padded = torch.full((PADDED,), -torch.inf)
    padded[:8] = row
    expected = reference(padded, states[0])[:8] * num_draws
    assert (counts[expected == 0] == 0).all()
    possible = expected > 0
    chi_square = (((counts - expected) ** 2)[possible] / expected[possible]).sum()
    assert chi_square < 26  # 7 degrees of freedom: p = 0.0005


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_row_without_finite_logits_is_reported_and_hurts_nobody(bad: float) -> None:
    rng = np.random.default_rng(3)
    logits = random_logits(rng, 4)
    states = [state(f"s{i}", seed=i, top_p=0.9, logprobs=2, frequency_penalty=1.0) for i in range(4)]
    good = Sampler(VOCAB)(logits.clone(), states)
    if bad == -math.inf:
        logits[2] = bad
    else:
        logits[2, 5] = bad
    spoilt = Sampler(VOCAB)(logits, states)
    assert set(spoilt.errors) == {2} and "no valid probabilities" in spoilt.errors[2]
    assert set(spoilt.logprobs) == {0, 1, 3}
    assert [spoilt.token_ids[i] for i in (0, 1, 3)] == [good.token_ids[i] for i in (0, 1, 3)]


def test_logprobs_and_rank_are_those_of_the_raw_logits() -> None:
    rng = np.random.default_rng(4)
    logits = random_logits(rng, 6)
    states = [
        state(f"s{i}", output=[1, 2], seed=i, logprobs=i, temperature=2.0, presence_penalty=2.0, logit_bias={i: 5.0})
        for i in range(6)
    ]
    sampled = Sampler(VOCAB)(logits.clone(), states)
    for index, row in enumerate(logits[:, :VOCAB].double().log_softmax(dim=-1)):
        found, chosen = sampled.logprobs[index], sampled.token_ids[index]
        top = row.topk(index)
        assert found.token_ids == [chosen, *top.indices.tolist()]
        assert found.logprobs == pytest.approx([float(row[chosen]), *top.values.tolist()], abs=1e-5)
        assert found.rank == 1 + int((row > row[chosen]).sum())


def test_all_logprobs() -> None:
    row = torch.randn(PADDED)
    sampled = Sampler(VOCAB)(row[None].clone(), [state("a", logprobs=-1)]).logprobs[0]
    assert sorted(sampled.token_ids[1:]) == list(range(VOCAB))  # no one has words for the others
    values = row[:VOCAB].log_softmax(-1)
    assert sampled.logprobs == pytest.approx([float(values[i]) for i in sampled.token_ids], abs=1e-5)


def test_no_logprobs_unless_asked() -> None:
    sampled = Sampler(VOCAB)(torch.zeros(2, PADDED), [state("a"), state("b", logprobs=0)])
    assert set(sampled.logprobs) == {1}
    assert len(sampled.logprobs[1].token_ids) == 1


def test_ids_beyond_the_tokenizer_are_never_chosen() -> None:
    logits = torch.zeros(2, PADDED)
    logits[:, VOCAB:] = 1e4
    states = [state("a", temperature=0.0, logprobs=3), state("b", temperature=2.0, logprobs=3)]
    sampled = Sampler(VOCAB)(logits, states)
    assert max(sampled.token_ids) < VOCAB
    assert max(token_id for each in sampled.logprobs.values() for token_id in each.token_ids) < VOCAB


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_stop_tokens_are_impossible_before_min_tokens(temperature: float) -> None:
    logits = torch.zeros(1, PADDED)
    logits[0, 3] = 100.0
    settings = {"temperature": temperature, "min_tokens": 2, "stop_ids": frozenset({3, PADDED + 9})}
    assert sample(logits, [state(output=[4], **settings)]) != [3]
    assert sample(logits, [state(output=[4, 4], **settings)]) == [3]


def test_a_tiny_temperature_is_greedy() -> None:
    logits = random_logits(np.random.default_rng(5), 8)
    for temperature in (1e-6, 1.1e-5, 1e-4):
        states = [state(f"s{i}", seed=i, temperature=temperature) for i in range(8)]
        assert sample(logits, states) == logits[:, :VOCAB].argmax(dim=-1).tolist()


def test_a_top_k_beyond_any_vocabulary_is_no_limit() -> None:
    logits = random_logits(np.random.default_rng(6), 1)
    assert sample(logits, [state(top_k=10**30)]) == sample(logits, [state()])


def test_what_cannot_be_ruled_out_alone_is_not_ruled_out_by_a_neighbour() -> None:
    """Tails too small to count in sums: only rows that ask for a filter may lose them."""
    row = torch.full((1, PADDED), -41.0)
    row[0, 0] = 0.0
    draws = Sampler(PADDED)._draws([Row(state()), Row(state(top_k=1))], row.device)
    assert draws is not None
    levels = _levels(row.repeat(2, 1), torch.zeros(2), draws)
    kept = _top_k_top_p(levels, draws)
    assert torch.equal(kept[0], levels[0])
    assert (kept[1] > -64).sum() == 1


def test_levels_and_weights_are_logarithms_and_probabilities() -> None:
    logits = torch.randn(2, 5000, generator=torch.Generator().manual_seed(8)) * 5
    draws = Sampler(5000)._draws([Row(state(temperature=0.7)), Row(state(temperature=3.0))], logits.device)
    assert draws is not None
    weights = _weights(_levels(logits, logits.amax(-1), draws)).double() / 2**42
    expected = (logits.double() / torch.tensor([[0.7], [3.0]])).softmax(-1)
    expected /= expected.amax(-1, keepdim=True)
    assert ((weights - expected).abs() <= 3e-6 * expected + 2**-42).all()
    assert weights.amax() == 1


def penalized_densely(row: torch.Tensor, of: SequenceState) -> torch.Tensor:
    """With numbers for all tokens of the vocabulary, as the definition is read."""
    params = of.request.params
    occurred, generated = torch.zeros(len(row), dtype=torch.bool), torch.zeros(len(row))
    occurred[of.token_ids[: of.num_tokens]] = True
    for token_id in of.output_token_ids:
        generated[token_id] += 1
    scale = params.repetition_penalty
    row = torch.where(occurred, torch.where(row > 0, row / scale, row * scale), row)
    return row - params.frequency_penalty * generated - params.presence_penalty * (generated > 0)


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.05},
        {"frequency_penalty": 0.3},
        {"presence_penalty": -0.7},
        {"repetition_penalty": 0.9, "frequency_penalty": 1.1, "presence_penalty": 0.2},
    ],
)
def test_penalties_of_the_tokens_that_occurred_are_those_of_all_to_the_last_bit(settings: dict[str, float]) -> None:
    rng = np.random.default_rng(11)
    of = state(prompt=[3, 3, 9, 0], output=[5], temperature=0.0, **settings)
    for _ in range(30):
        row = random_logits(rng, 1)[0]
        expected = penalized_densely(row, of)
        apply_all(of.processors, row[None], [])
        assert torch.equal(row, expected)
        of.append(int(rng.integers(VOCAB)))


def test_log_probabilities_are_of_the_row_before_it_was_changed() -> None:
    """Bias, ban and penalty may meet at one token."""
    logits = random_logits(np.random.default_rng(12), 1)
    plain = state(logprobs=VOCAB, temperature=0.0)
    changed = state(
        "b", prompt=[3], output=[3, 5], stop_ids=frozenset({3, 7}), min_tokens=5, logit_bias={3: 9.0, 8: -9.0},
        logprobs=VOCAB, temperature=0.0, repetition_penalty=1.5,
    )  # fmt: skip
    before, after = (Sampler(VOCAB)(logits.clone(), [each]).logprobs[0] for each in (plain, changed))
    assert (before.token_ids[1:], before.logprobs[1:]) == (after.token_ids[1:], after.logprobs[1:])


@pytest.mark.parametrize("vocab", [1, 5, 127, 128, 129, 1000, 92553])
def test_argmax_is_the_first_of_the_largest(vocab: int) -> None:
    logits = torch.randn(7, vocab, generator=torch.Generator().manual_seed(vocab))
    logits[1:3] = -torch.inf
    logits[2, -1] = -5
    for row, places in ((3, (vocab // 2, vocab - 1)), (4, (0, vocab - 1)), (5, (vocab // 3, vocab // 3 * 2))):
        logits[row, list(places)] = 99
    chosen, largest = _argmax(logits)
    assert torch.equal(chosen, logits.argmax(dim=-1))
    assert torch.equal(largest, logits.amax(dim=-1))


@pytest.mark.parametrize("place", [0, 128, 300])
def test_argmax_does_not_hide_what_is_no_number(place: int) -> None:
    logits = torch.zeros(2, 301)
    logits[1, place] = torch.nan
    _, largest = _argmax(logits)
    assert largest.isnan().tolist() == [False, True]
