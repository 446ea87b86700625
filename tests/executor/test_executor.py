"""What an executor promises: what all ranks have room for, and results in order however many steps are in flight."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import tiny
from trifocal.config.engine import EngineArgs, resolve
from trifocal.engine.engine import Engine
from trifocal.executor.base import least
from trifocal.executor.local import LocalExecutor
from trifocal.sampling_params import SamplingParams
from trifocal.types import Capacity, Prompt, Request


def test_the_least_capacity_of_all_ranks() -> None:
    ranks = [Capacity(70, 512, 64), Capacity(60, 512, 64), Capacity(90, 480, 64)]
    assert least(ranks) == Capacity(num_blocks=60, max_model_len=480, bytes_per_embed=64)
    assert least(ranks[:1]) == ranks[0]


def test_results_come_in_order_however_many_steps_are_in_flight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too few blocks for all, so that some are preempted with steps in flight; the last one is aborted so."""
    folder = tiny.write_checkpoint(tmp_path / "model")
    answers, begun = [], []
    for most in (1, 2, 3):
        monkeypatch.setattr(LocalExecutor, "max_steps_in_flight", most)
        config = resolve(EngineArgs(model=str(folder), dtype="float32", max_model_len=128, num_gpu_blocks_override=10))
        engine = Engine(config, lambda plans: begun.append([plan.step_id for plan in plans]))
        for number in range(6):
            params = SamplingParams(temperature=1.0, max_tokens=20 + number)
            prompt = Prompt(list(range(5 + number, 25 + 2 * number)))
            engine.add(Request(str(number), prompt, params, seed=number))
        got: dict[str, list[int]] = {}
        ahead = 0
        while engine.has_work:
            for output in engine.step():
                got.setdefault(output.request_id, []).extend(output.token_ids)
            ahead = max(ahead, len(engine._steps))
            if len(got.get("5", ())) == 3:
                engine.abort("5")
        stats = engine.stats()
        engine.shutdown()
        assert ahead == most - 1, "beside the one whose result was taken in"
        assert stats.num_preemptions > 0 == stats.kv_blocks_used
        assert got.pop("5")[:3] and [len(got[str(number)]) for number in range(5)] == [20, 21, 22, 23, 24]
        answers.append(got)
        assert [step_ids[-1] for step_ids in begun] == list(range(1, len(begun) + 1))
        begun.clear()
    assert answers[0] == answers[1] == answers[2]
