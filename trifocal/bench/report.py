"""From measured requests to numbers and a table.

TTFT: request sent to first text. ITL: gaps between pieces of text. TPOT: (last - first text) / (tokens - 1), one number
a request. E2E: request sent to answer complete. Token counts are the server's own (`usage`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from trifocal.bench.load import Measured

_LATENCIES = (("ttft_ms", "TTFT ms"), ("tpot_ms", "TPOT ms"), ("itl_ms", "ITL ms"), ("e2e_ms", "E2E ms"))
_COLUMNS = ("mean", "median", "p90", "p99")


def summarise(measured: Sequence[Measured]) -> dict[str, Any]:
    """The numbers of one run; latencies as {mean, median, p90, p99} in milliseconds, absent if nothing was streamed."""
    good = [one for one in measured if one.error is None]
    errors = [one.error for one in measured if one.error is not None]
    summary: dict[str, Any] = {"num_requests": len(measured), "num_failed": len(errors), "errors": errors[:5]}
    if not good:
        return summary
    wall = max(one.end for one in good) - min(one.start for one in measured)
    num_prompt, num_output = sum(one.num_prompt_tokens for one in good), sum(one.num_output_tokens for one in good)
    samples = {
        "ttft_ms": [one.chunk_times[0] - one.start for one in good if one.chunk_times],
        "tpot_ms": [
            (one.chunk_times[-1] - one.chunk_times[0]) / (one.num_output_tokens - 1)
            for one in good
            if len(one.chunk_times) > 1 and one.num_output_tokens > 1
        ],
        "itl_ms": [
            later - earlier
            for one in good
            for earlier, later in zip(one.chunk_times, one.chunk_times[1:], strict=False)
        ],
        "e2e_ms": [one.end - one.start for one in good],
    }
    return summary | {
        "wall_s": wall,
        "num_prompt_tokens": num_prompt,
        "num_output_tokens": num_output,
        "requests_per_s": len(good) / wall,
        "output_tokens_per_s": num_output / wall,
        "total_tokens_per_s": (num_prompt + num_output) / wall,
        **{name: _spread(values) for name, values in samples.items() if values},
    }


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    milliseconds = [1e3 * value for value in seconds]
    return {
        "mean": sum(milliseconds) / len(milliseconds),
        "median": percentile(milliseconds, 0.5),
        "p90": percentile(milliseconds, 0.9),
        "p99": percentile(milliseconds, 0.99),
    }


def render(name: str, summary: dict[str, Any]) -> str:
    """A summary as lines for a terminal."""
    lines = [f"{name}: {summary['num_requests']} requests, {summary['num_failed']} failed"]
    lines += [f"  error: {error}" for error in summary["errors"]]
    if "wall_s" not in summary:
        return "\n".join(lines)
    lines.append(
        f"  {summary['wall_s']:.2f} s   {summary['requests_per_s']:.2f} requests/s   "
        f"{summary['output_tokens_per_s']:.1f} output tokens/s   {summary['total_tokens_per_s']:.1f} tokens/s in all   "
        f"({summary['num_prompt_tokens']} in, {summary['num_output_tokens']} out)"
    )
    lines.append("  " + " " * 8 + "".join(f"{column:>10}" for column in _COLUMNS))
    for key, title in _LATENCIES:
        if key in summary:
            lines.append(f"  {title:8}" + "".join(f"{summary[key][column]:10.1f}" for column in _COLUMNS))
    return "\n".join(lines)
