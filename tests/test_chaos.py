"""The short form of benchmarks/chaos.py: a few deaths, every byte compared. The long form is run by hand."""

from __future__ import annotations

import pytest

from benchmarks import chaos


def test_nobody_can_tell_that_the_engine_died(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIFOCAL_ENGINE_RESTART_BACKOFF_S", "0.1")
    storm = chaos.Storm(kills=3, stops=1, mean_s=1.5, timeout_s=2.0, num_clients=16, max_tokens=64)
    report = chaos.run(storm)
    assert report.is_good, chaos.render(report)
    assert report.restarts >= 4
    assert report.num_streams >= 16
    assert report.replays > 0


def test_differences_are_seen() -> None:
    calm = chaos.Stream([b"a", b"b", b"c"])
    report = chaos.Report(chaos.Storm())
    for events in ([b"a", b"b", b"c"], [b"a", b"c"], [b"a", b"b", b"b", b"c"], [b"a", b"x", b"c"]):
        chaos.count_differences(report, calm, chaos.Stream(events))
    assert (report.num_streams, report.lost, report.doubled, report.changed) == (4, 1, 1, 3)
    assert not report.is_good
