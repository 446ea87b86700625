"""The lines that Trifocal wants to reach on a CPU, each checked against the figures of one run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from benchmarks.peers.cost import KV_BYTES, floor_seconds, prompt_flop
from benchmarks.peers.results import Figures, Results
from benchmarks.peers.workloads import AGAIN, CONTEXT_STREAMS, CONTEXT_TOKENS

# By name: engine, precision and figures of peers that need scripts of their own to be here (scripts/build-vllm and
# build-openvino); used where that engine did not run. They were measured on another 2-core machine (Zen 4), so what
# they say about this one is rough.
RECORDED = {
    "vLLM-CPU 0.32 bf16": (
        "vllm", "bf16", {"image1 ttft_s": 1.01, "image8 tok_s": 48.6, "text1 decode_tok_s": 17.3},
    ),
    "OpenVINO GenAI 2026.4 int8": (
        "openvino", "int8", {"image1 ttft_s": 0.87, "image8 tok_s": 53.2, "text1 decode_tok_s": 32.2},
    ),
    "OpenVINO GenAI 2026.4 int4": (
        "openvino", "int4", {"image1 ttft_s": 0.91, "image8 tok_s": 55.4, "text1 decode_tok_s": 50.3},
    ),
}  # fmt: skip
RECORDED_VLLM_PEAK = 7.35e9


@dataclass(frozen=True)
class Line:
    """One line: `value` against `bound` in the same unit; neither where the run has no figure for it."""

    what: str
    value: float | None
    bound: float | None
    unit: str
    beside: str  # where the bound comes from
    is_less_better: bool = False

    @property
    def holds(self) -> bool | None:
        """None: it cannot be told."""
        if self.value is None or self.bound is None:
            return None
        return self.value <= self.bound if self.is_less_better else self.value >= self.bound

    @property
    def share(self) -> float | None:
        """Value over bound, upside down where less is better: 1 and above holds."""
        if self.value is None or self.bound is None or not self.value or not self.bound:
            return None
        return self.bound / self.value if self.is_less_better else self.value / self.bound


def lines(results: Results) -> list[Line]:
    """All that the run can say something about."""
    parts = (_decoding, _first_token, _pictures, _streams, _sampling, _prefill, _again, _context, _start, _memory)
    return [line for part in parts for line in part(results)]


def _ours(results: Results, precisions: Iterable[str] = ("bf16", "int8", "int4")) -> Iterator[Figures]:
    for precision in precisions:
        found = results.of(f"Trifocal {precision}")
        if found is not None:
            yield found


def _decoding(results: Results) -> Iterator[Line]:
    against = (("bf16", "llama.cpp BF16", 1.0), ("int8", "llama.cpp Q8_0", 1.2), ("int4", "llama.cpp Q4_0", 1.3))
    for precision, rival, factor in against:
        for mine in _ours(results, [precision]):
            speed = mine.value("text1", "decode_tok_s")
            other = results.of(rival)
            theirs = other.value("text1", "decode_tok_s") if other else None
            bound = None if theirs is None else factor * theirs
            yield Line(f"one stream, {precision}", speed, bound, "tok/s", f"{factor:g} × {rival}")
            rates = mine.machine()
            if precision == "bf16" and speed is not None and rates and mine.weight_bytes:
                yield Line(
                    "one stream, bf16: weight bytes read", speed * mine.weight_bytes / 1e9, 0.9 * rates.read / 1e9,
                    "GB/s", "90 % of the bandwidth measured beside it",
                )  # fmt: skip
            if precision != "bf16" and other and mine.weight_bytes and other.weight_bytes:
                yield Line(
                    f"weight bytes a token, {precision}", mine.weight_bytes / 1e6, other.weight_bytes / 1e6, "MB",
                    f"no more than {rival}", is_less_better=True,
                )  # fmt: skip


def _best(
    results: Results, workload: str, figure: str, precision: str | None, choose: Callable[..., float]
) -> tuple[float, str] | None:  # fmt: skip
    """The best peer's figure and its name; recorded ones only of engines that did not run."""
    found = {
        peer.name: value for peer in results.peers(precision) if (value := peer.value(workload, figure)) is not None
    }
    ran = {peer.engine for peer in results.peers() if peer.runs}
    for name, (engine, kind, values) in RECORDED.items():
        if engine not in ran and precision in (None, kind):
            value = values.get(f"{workload} {figure}")
            if value is not None:
                found[f"{name}, recorded"] = value
    if not found:
        return None
    best = choose(found.values())
    return best, next(name for name, value in found.items() if value == best)


def _against_best(
    results: Results, workload: str, figure: str, factors: dict[str, tuple[float, str | None]], *, unit: str, less: bool
) -> Iterator[Line]:  # fmt: skip
    for precision, (factor, among) in factors.items():
        for mine in _ours(results, [precision]):
            best = _best(results, workload, figure, among, min if less else max)
            bound, beside = (factor * best[0], f"{factor:g} × {best[1]}") if best else (None, "no peer")
            what = f"{_NAMES[workload]}, {precision}"
            yield Line(what, mine.value(workload, figure), bound, unit, beside, is_less_better=less)


_NAMES = {
    "image1": "first token after one picture",
    "image8": "eight requests with pictures",
    "text16": "16 streams of text",
    "text32": "32 streams of text",
}


def _first_token(results: Results) -> Iterator[Line]:
    factors: dict[str, tuple[float, str | None]] = {"bf16": (0.85, "bf16"), "int8": (0.7, None)}
    yield from _against_best(results, "image1", "ttft_s", factors, unit="s", less=True)


def _pictures(results: Results) -> Iterator[Line]:
    factors: dict[str, tuple[float, str | None]] = {"bf16": (1.2, "bf16"), "int8": (1.6, None)}
    yield from _against_best(results, "image8", "tok_s", factors, unit="tok/s", less=False)


def _streams(results: Results) -> Iterator[Line]:
    for workload, streams in (("text16", 16), ("text32", 32)):
        for mine in _ours(results):
            floor = floor_of(mine, workload, streams)
            best = _best(results, workload, "tok_s", mine.precision, max)
            bounds = []
            if best:
                bounds.append((1.5 * best[0], f"1.5 × {best[1]}"))
            if floor:
                bounds.append((0.75 * streams * 64 / floor, "75 % of the floor"))
            bound, beside = min(bounds) if bounds else (None, "no peer")
            what = f"{_NAMES[workload]}, {mine.precision}"
            yield Line(what, mine.value(workload, "tok_s"), bound, "tok/s", beside)


def floor_of(mine: Figures, workload: str, streams: int, pictures: int = 0) -> float | None:
    """The least seconds that the machine needs for a workload of 64 tokens a stream."""
    rates, median = mine.machine(), mine.median(workload)
    if not (rates and median and mine.weight_bytes):
        return None
    prompt = round(median["prompt_tokens"])
    return floor_seconds(
        rates, mine.precision, mine.weight_bytes, streams=streams, prompt=prompt, output=64, pictures=pictures
    )


def _sampling(results: Results) -> Iterator[Line]:
    for workload, figure, name in (("text1", "decode_tok_s", "one stream"), ("text16", "tok_s", _NAMES["text16"])):
        for mine in _ours(results):
            greedy = mine.value(workload, figure)
            yield Line(
                f"{name}, sampled, {mine.precision}", mine.value(f"{workload}-sampled", figure),
                None if greedy is None else 0.95 * greedy, "tok/s", "95 % of greedy",
            )  # fmt: skip


def _prefill(results: Results) -> Iterator[Line]:
    for tokens in (512, 2048):
        for mine in _ours(results, ("bf16", "int8")):
            median, rates = mine.median(f"prefill{tokens}"), mine.machine()
            rate = prompt_flop(round(median["prompt_tokens"])) / median["ttft_s"] if median else None
            bound = 0.8 * rates.gemm(mine.precision) / 1e9 if rates else None
            what = f"prompt of {tokens} tokens, {mine.precision}"
            yield Line(what, rate and rate / 1e9, bound, "GFLOP/s", "80 % of the products' rate measured beside it")


def _again(results: Results) -> Iterator[Line]:
    for mine in _ours(results):
        first, again = mine.value("image1", "ttft_s"), mine.value(AGAIN, "ttft_s")
        bound = None if first is None else 100 * first
        value = None if again is None else 1000 * again
        yield Line(
            f"the same picture again, {mine.precision}", value, bound, "ms", "10 % of the first time",
            is_less_better=True,
        )  # fmt: skip


def context_cost(mine: Figures) -> list[tuple[int, float]]:
    """(prompt tokens, milliseconds a step) of eight streams, by length."""
    found = []
    for tokens in CONTEXT_TOKENS:
        median = mine.median(f"context{tokens}")
        if median and "decode_tok_s" in median:
            found.append((round(median["prompt_tokens"]), 1e3 / median["decode_tok_s"]))
    return found


def _context(results: Results) -> Iterator[Line]:
    for mine in _ours(results):
        points, rates = context_cost(mine), mine.machine()
        if len(points) < 3 or rates is None:
            continue
        slope, start = fit(points)
        speed = CONTEXT_STREAMS * KV_BYTES / (slope * 1e-3)
        yield Line(
            f"keys and values read, 8 streams, {mine.precision}", speed / 1e9, 0.6 * rates.read / 1e9, "GB/s",
            "60 % of the bandwidth measured beside it",
        )  # fmt: skip
        off = max(abs(start + slope * tokens - cost) / cost for tokens, cost in points)
        yield Line(
            f"cost of a step over context length, off a line, {mine.precision}", 100 * off, 10.0, "%",
            "linear within 10 %", is_less_better=True,
        )  # fmt: skip


def fit(points: list[tuple[int, float]]) -> tuple[float, float]:
    """Slope and start of the line of least squares."""
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)
    return slope, mean_y - slope * mean_x


def _start(results: Results) -> Iterator[Line]:
    for mine in _ours(results):
        if mine.start_s:
            yield Line(f"first start to ready, {mine.precision}", mine.start_s[0], 8.0, "s", "8 s", is_less_better=True)
        if len(mine.start_s) > 1:
            later = sorted(mine.start_s[1:])[(len(mine.start_s) - 1) // 2]
            yield Line(f"next start to ready, {mine.precision}", later, 5.0, "s", "5 s", is_less_better=True)


def _memory(results: Results) -> Iterator[Line]:
    vllm = next((peer for peer in results.peers() if peer.engine == "vllm" and peer.peak_bytes), None)
    peak, whose = (vllm.peak_bytes, vllm.name) if vllm else (RECORDED_VLLM_PEAK, "vLLM-CPU 0.32, recorded")
    for mine in _ours(results, ["bf16"]):
        yield Line(
            "most memory of all processes, bf16", mine.peak_bytes / 1e9 or None, peak / 2e9, "GB", f"half of {whose}",
            is_less_better=True,
        )  # fmt: skip
