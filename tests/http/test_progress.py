"""`Progress`: time without a sign of the engine counts only while there is work."""

from __future__ import annotations

import pytest

from trifocal.http import progress
from trifocal.http.progress import Progress


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "monotonic", clock)
    return clock


def test_idle_is_no_stall(clock: Clock) -> None:
    watched = Progress()
    clock.now += 1000
    assert watched.stalled_s(7) == 0
    watched.begin()
    clock.now += 5
    assert watched.stalled_s(7) == 5
    watched.end()
    clock.now += 1000
    assert watched.stalled_s(7) == 0


def test_time_counts_from_the_first_of_several_requests(clock: Clock) -> None:
    watched = Progress()
    assert watched.stalled_s(7) == 0
    watched.begin()
    clock.now += 3
    watched.begin()
    assert watched.stalled_s(7) == 3


def test_steps_and_deltas_are_signs(clock: Clock) -> None:
    watched = Progress()
    watched.stalled_s(7)
    watched.begin()
    clock.now += 5
    watched.moved()
    clock.now += 2
    assert watched.stalled_s(7) == 2
    assert watched.stalled_s(8) == 0
    clock.now += 4
    assert watched.stalled_s(8) == 4
