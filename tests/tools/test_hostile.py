"""The short form of `benchmarks/hostile.py`, and that the corpus is what it says: large, and the same each time."""

from __future__ import annotations

import pytest

from tools.hostile.attack import attack
from tools.hostile.corpus import all_cases, some_cases

NUM_SENT = 60


def test_the_server_is_itself_after_an_attack() -> None:
    cases = some_cases(NUM_SENT, seed=1)
    assert {case.kind for case in cases} == {case.kind for case in all_cases()} and len(cases) >= NUM_SENT
    report = attack(cases, [1])
    assert report.problems == [], report
    assert sum(report.statuses.values()) == len(cases)
    assert report.statuses[200] >= 3 and report.statuses[400] >= 20


def test_requests_of_the_document_are_answered_as_it_says() -> None:
    report = attack([], [1], generated=3)
    assert report.problems == [], report
    assert report.statuses[200] >= 6 and report.statuses[400] >= 6, report


def test_the_corpus() -> None:
    cases = all_cases()
    assert len(cases) >= 400 and len({case.name for case in cases}) == len(cases)
    kinds = {"picture", "bomb", "clip", "url", "data", "json", "number", "token", "template", "text"}
    assert {case.kind for case in cases} == kinds


@pytest.mark.parametrize("kind", ["json/mutated", "number/field", "token", "data", "url/inside", "picture/PNG"])
def test_cases_are_the_same_each_time_and_others_with_another_seed(kind: str) -> None:
    cases = [case for case in all_cases() if case.name.startswith(kind)][:6]
    bodies = [case.call(1).body for case in cases]
    assert bodies == [case.call(1).body for case in cases]
    if kind not in ("data", "url/inside"):
        assert bodies != [case.call(2).body for case in cases]
