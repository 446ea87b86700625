"""Steps on a tiny model. One request's fault while tokens are chosen: it fails alone, its neighbours get what they get
without it. Drafts: they change no answer."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests import tiny
from trifocal.config.engine import EngineArgs, resolve
from trifocal.engine.engine import Engine
from trifocal.sampling_params import SamplingParams
from trifocal.types import Prompt, Request, StepPlan, StepResult, TokenLogprobs, TokenOutput
from trifocal.worker import sampler
from trifocal.worker.input_batch import SequenceState
from trifocal.worker.logits_processors import LogitBias, Penalties
from trifocal.worker.model_runner import ModelRunner
from trifocal.worker.sampler import Sampler

BAD_SEED, FAILS_AT = 666, 3
EVERY_KIND = {
    "greedy": {"temperature": 0.0},
    "drawn": {"temperature": 1.0, "top_p": 0.9, "top_k": 40},
    "penalties": {"temperature": 0.0, "frequency_penalty": 0.7, "presence_penalty": 0.3, "repetition_penalty": 1.2},
    "bias": {"temperature": 1.0, "logit_bias": {5: 3.0}},
    "logprobs": {"temperature": 0.0, "logprobs": 3},
    "min_tokens": {"temperature": 0.0, "min_tokens": 4},
    "allowed": {"temperature": 1.0, "allowed_token_ids": list(range(40, 90))},
    "bad words": {"temperature": 0.0, "bad_words": ["some"], "frequency_penalty": 0.4},
}


def request(name: str, seed: int = 0, **params: Any) -> Request:
    token_ids = np.random.default_rng(len(name)).integers(0, 256, 9).tolist()
    words = ((33,), (12, 34), (12, 34, 56)) if params.get("bad_words") else ()
    sampling = SamplingParams(max_tokens=10, **params)
    return Request(name, Prompt(token_ids), sampling, frozenset([7]), seed, bad_word_ids=words)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = tiny.write_checkpoint(tmp_path_factory.mktemp("tiny") / "model")
    made = Engine(resolve(EngineArgs(model=str(folder), dtype="float32", max_model_len=64)))
    yield made
    made.shutdown()


Answer = tuple[list[int], list[TokenLogprobs], str | None, int | str | None]


def answers(engine: Engine, requests: list[Request]) -> dict[str, Answer]:
    """What each gets, all running together, each step planned while the one before runs."""
    outputs: dict[str, list[TokenOutput]] = {each.request_id: [] for each in requests}
    for each in requests:
        engine.add(each)
    while engine.has_work:
        for output in engine.step():
            outputs[output.request_id].append(output)
    return {
        name: (
            [token_id for output in own for token_id in output.token_ids],
            [each for output in own for each in output.logprobs or ()],
            own[-1].finish_reason,
            own[-1].stop_reason,
        )
        for name, own in outputs.items()
    }


@pytest.fixture(scope="module")
def undisturbed(engine: Engine) -> dict[str, Answer]:
    return answers(engine, [request(name, **params) for name, params in EVERY_KIND.items()])


def break_adjusting(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """After the row was changed."""
    calls, apply = [], LogitBias.apply

    def broken(self: LogitBias, row: Any) -> None:
        apply(self, row)
        calls.extend([row] if self._ids.tolist() == [3] else [])
        if len(calls) > FAILS_AT and self._ids.tolist() == [3]:
            raise IndexError("index 99 is out of range")

    monkeypatch.setattr(LogitBias, "apply", broken)
    return {"logit_bias": {3: 1.0}}


def break_counting(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """In the middle of its own counts; those of others are complete or not begun."""
    calls, accept = [], Penalties.accept

    def broken(self: Penalties, token_id: int) -> None:
        accept(self, token_id)
        calls.extend([token_id] if self._frequency == 1.0 else [])
        if len(calls) > FAILS_AT and self._frequency == 1.0:
            raise MemoryError

    monkeypatch.setattr(Penalties, "accept", broken)
    return {"frequency_penalty": 1.0}


def break_drawing(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    uniform = sampler._uniform

    def broken(state: Any, num_drafts: int) -> float:
        if state.request.seed == BAD_SEED and state.num_output_tokens >= FAILS_AT:
            raise OverflowError
        return uniform(state, num_drafts)

    monkeypatch.setattr(sampler, "_uniform", broken)
    return {"temperature": 1.0}


def break_logprobs(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    calls, logprobs = [], sampler._logprobs

    def broken(row: Any, chosen: int) -> TokenLogprobs:
        is_bad = len(row.values) == 5
        calls.extend([chosen] if is_bad else [])
        if is_bad and len(calls) > FAILS_AT:
            raise RuntimeError("selected index k out of range")
        return logprobs(row, chosen)

    monkeypatch.setattr(sampler, "_logprobs", broken)
    return {"logprobs": 5}


@pytest.mark.parametrize("fault", [break_adjusting, break_counting, break_drawing, break_logprobs])
@pytest.mark.parametrize("place", [0, 3, 6])
def test_a_fault_in_one_row_is_that_request_s_alone(
    fault: Callable[[pytest.MonkeyPatch], dict[str, Any]],
    place: int,
    engine: Engine,
    undisturbed: dict[str, Answer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Wherever in the batch it is; the step that was planned ahead for it changes nothing either."""
    monkeypatch.setattr(logging.getLogger("trifocal"), "handlers", [])
    requests = [request(name, **params) for name, params in EVERY_KIND.items()]
    requests.insert(place, request("bad", seed=BAD_SEED, **fault(monkeypatch)))
    got = answers(engine, requests)
    token_ids, _, reason, message = got.pop("bad")
    assert (len(token_ids), reason) == (FAILS_AT, "error")
    assert message == "the next token could not be chosen; the server's log says more"
    assert got == undisturbed
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting, stats.kv_blocks_used) == (0, 0, 0)


def test_what_fails_together_and_not_alone_fails_nobody(
    engine: Engine, undisturbed: dict[str, Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory for one row there may be where there is none for all; nothing is counted twice on the way."""
    call = Sampler.__call__

    def broken(self: Sampler, logits: Any, states: Any) -> Any:
        sampled = call(self, logits, states)
        if len(states) > 1 and states[0].num_output_tokens % 2:
            raise MemoryError
        return sampled

    monkeypatch.setattr(Sampler, "__call__", broken)
    assert answers(engine, [request(name, **params) for name, params in EVERY_KIND.items()]) == undisturbed


def test_a_batch_without_a_fault_is_sampled_at_once(
    engine: Engine, undisturbed: dict[str, Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("row by row")

    monkeypatch.setattr(Sampler, "one_by_one", never)
    assert answers(engine, [request(name, **params) for name, params in EVERY_KIND.items()]) == undisturbed


class Prophet:
    """Drafts what is going to be said, but for a slip now and then; and once it fails."""

    def __init__(self, answers: dict[str, Answer]) -> None:
        self._answers = {name: answer[0] for name, answer in answers.items()}
        self._random = random.Random(0)
        self.num_drafts = self.num_calls = 0

    def draft(self, state: SequenceState, most: int) -> list[int]:
        self.num_calls += 1
        if self.num_calls == 5:
            raise RuntimeError("no idea")
        rest = self._answers[state.request.request_id][state.num_output_tokens :][:most]
        self.num_drafts += len(rest)
        return [(token_id + (self._random.random() < 0.3)) % 256 for token_id in rest]


@pytest.mark.parametrize("most", [1, 4])
def test_drafts_change_no_answer(
    engine: Engine, undisturbed: dict[str, Answer], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drawn or greedy, with processors or without: only the steps are fewer."""
    prophet, execute, plans = Prophet(undisturbed), ModelRunner.execute, []

    def drafting(self: ModelRunner, plan: StepPlan) -> StepResult:
        self.drafter = prophet
        plans.append(plan)
        return execute(self, plan)

    monkeypatch.setattr(ModelRunner, "execute", drafting)
    monkeypatch.setattr(engine, "limits", replace(engine.limits, max_drafts=most))
    engine.restart()
    try:
        got = answers(engine, [request(name, **params) for name, params in EVERY_KIND.items()])
        assert {name: answer[0] for name, answer in got.items()} == {name: a[0] for name, a in undisturbed.items()}
        assert [answer[2:] for answer in got.values()] == [answer[2:] for answer in undisturbed.values()]
        for name, (_, logprobs, *_) in got.items():
            for ours, theirs in zip(logprobs, undisturbed[name][1], strict=True):
                assert ours.token_ids == theirs.token_ids
                assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)
        num_steps, num_tokens = sum(len(plan.scheduled) for plan in plans), 10 * len(EVERY_KIND)
        assert prophet.num_drafts > 20 and num_steps < 0.8 * num_tokens
        stats = engine.stats()
        assert (stats.num_running, stats.num_waiting, stats.kv_blocks_used) == (0, 0, 0)
    finally:
        monkeypatch.undo()
        engine.restart()
