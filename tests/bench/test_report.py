"""The numbers of a benchmark, against ones worked out by hand."""

from __future__ import annotations

import pytest

from trifocal.bench.load import Measured
from trifocal.bench.report import percentile, render, summarise


def measured(start: float, *chunks: float, end: float, tokens: int) -> Measured:
    return Measured(start, end, list(chunks), num_prompt_tokens=10, num_output_tokens=tokens)


def test_summary_by_hand() -> None:
    runs = [
        measured(0.0, 1.0, 1.5, 2.0, end=2.1, tokens=5),  # two tokens came in one chunk, twice
        measured(1.0, 4.0, 4.1, end=5.0, tokens=2),
        Measured(0.5, 0.6, error="500 no"),
    ]
    summary = summarise(runs)
    assert (summary["num_requests"], summary["num_failed"], summary["errors"]) == (3, 1, ["500 no"])
    assert summary["wall_s"] == 5.0
    assert summary["requests_per_s"] == pytest.approx(2 / 5)
    assert summary["output_tokens_per_s"] == pytest.approx(7 / 5)
    assert summary["total_tokens_per_s"] == pytest.approx(27 / 5)
    assert summary["ttft_ms"]["mean"] == pytest.approx(2000)
    assert summary["tpot_ms"]["mean"] == pytest.approx((250 + 100) / 2)
    assert summary["itl_ms"]["median"] == pytest.approx(500)
    assert summary["e2e_ms"]["p99"] == pytest.approx(4000)
    text = render("name", summary)
    assert "1 failed" in text and "500 no" in text and "TTFT" in text


def test_without_streaming_there_are_only_whole_answers() -> None:
    summary = summarise([measured(0.0, end=1.0, tokens=4)])
    assert "ttft_ms" not in summary and summary["e2e_ms"]["mean"] == pytest.approx(1000)


def test_all_failed() -> None:
    summary = summarise([Measured(0.0, 1.0, error="refused")])
    assert "wall_s" not in summary and "refused" in render("name", summary)


@pytest.mark.parametrize(("share", "expected"), [(0.5, 5), (0.9, 9), (0.99, 10), (0.0, 1), (1.0, 10)])
def test_percentile_is_nearest_rank(share: float, expected: int) -> None:
    assert percentile([10, 3, 1, 2, 5, 4, 8, 7, 6, 9], share) == expected
