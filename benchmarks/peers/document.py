"""docs/performance.md out of the results of a run. What is written by hand in it, below a mark, stays."""

from __future__ import annotations

from pathlib import Path

from benchmarks.peers.chart import Curve, chart
from benchmarks.peers.results import Figures, Results
from benchmarks.peers.targets import Line, context_cost, floor_of, lines
from benchmarks.peers.workloads import AGAIN, WORKLOADS

MARK = "<!-- By hand from here on: `make bench` writes what is above and keeps what is below. -->"
_SHAPE = "a Qwen2.5-VL of 543 million parameters, 49 of them vision, random weights"


def write(results: Results, folder: Path) -> Path:
    """Write `performance.md` and its pictures under `folder`; returns the page."""
    page, pictures = folder / "performance.md", folder / "performance"
    kept = page.read_text(encoding="utf-8").partition(MARK)[2] if page.is_file() else "\n"
    figures = _charts(results)
    pictures.mkdir(parents=True, exist_ok=True)
    for name, (_, svg) in figures.items():
        (pictures / f"{name}.svg").write_text(svg, encoding="utf-8")
    shown = [f"![{about}](performance/{name}.svg)" for name, (about, _) in figures.items()]
    parts = [_head(results), _targets(lines(results)), _table(results), _floors(results), *shown, MARK]
    page.write_text("\n\n".join(filter(None, parts)) + kept, encoding="utf-8")
    return page


def _head(results: Results) -> str:
    machine, rates = results.machine, results.rates()
    took_part = ", ".join(f"{one.name} ({one.version})" for one in results.contenders)
    text = [
        "# Performance on a CPU",
        "Written by `make bench`, which starts each engine in turn, never two at once, and asks all of them the same: "
        f"{_SHAPE}. Greedy decoding, answers of a fixed length, no prompt like another. Medians of "
        f"{results.rounds} round{'s' * (results.rounds != 1)}, every engine started anew in each.",
        f"Machine: {machine['processor']} (family {machine['family']}), {machine['cores']} cores, "
        f"{machine['memory_bytes'] / 1e9:.0f} GB, {' '.join(machine['instructions'])}; Linux {machine['kernel']}, "
        f"Python {machine['python']}, torch {machine['torch']}.",
    ]
    if rates:
        text.append(
            f"Measured beside the engines: reading memory {rates.read / 1e9:.1f} GB/s; large products "
            f"{rates.gemm_bf16 / 1e9:.0f} GFLOP/s in bfloat16, {rates.gemm_int8 / 1e9:.0f} Gop/s in int8. Other "
            f"programs took {100 * results.others():.0f} % of the processors meanwhile (median)."
        )
    text.append(f"Took part: {took_part}." + "".join(f" Not {name}: {why}." for name, why in results.absent.items()))
    return "\n\n".join(text)


def _targets(checked: list[Line]) -> str:
    rows = ["## Targets", "", "| figure | reached | target | beside | of it | |", "|---|---|---|---|---|---|"]
    words = {True: "holds", False: "**misses**", None: "not measured"}
    for line in checked:
        reached, target = (_number(line.value, line.unit), _number(line.bound, line.unit))
        target = target if line.bound is None else ("≤ " if line.is_less_better else "≥ ") + target
        share = "–" if line.share is None else f"{line.share:.2f}"
        rows.append(f"| {line.what} | {reached} | {target} | {line.beside} | {share} | {words[line.holds]} |")
    rows += ["", "`of it` is reached ÷ target, or target ÷ reached where less is better: from 1 on the line holds."]
    return "\n".join(rows)


def _number(value: float | None, unit: str) -> str:
    return "–" if value is None else f"{value:.3g} {unit}" if value < 1000 else f"{value:.0f} {unit}"


_COLUMNS = (
    ("text1, tok/s", "text1", "decode_tok_s", "{:.1f}"),
    ("text1-sampled, tok/s", "text1-sampled", "decode_tok_s", "{:.1f}"),
    ("image1, TTFT s", "image1", "ttft_s", "{:.2f}"),
    ("image1, tok/s", "image1", "decode_tok_s", "{:.1f}"),
    ("again, TTFT s", AGAIN, "ttft_s", "{:.2f}"),
    ("image8, tok/s", "image8", "tok_s", "{:.1f}"),
    ("image8, TTFT s", "image8", "ttft_s", "{:.1f}"),
    ("text16, tok/s", "text16", "tok_s", "{:.1f}"),
    ("text16-sampled, tok/s", "text16-sampled", "tok_s", "{:.1f}"),
    ("text32, tok/s", "text32", "tok_s", "{:.1f}"),
    ("prefill 512, s", "prefill512", "ttft_s", "{:.2f}"),
    ("prefill 2048, s", "prefill2048", "ttft_s", "{:.2f}"),
)


def _table(results: Results) -> str:
    heads = ["engine", *(head for head, *_ in _COLUMNS), "start s", "peak GB", "MB a token"]
    rows = ["## All figures", "", "| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for one in results.contenders:
        cells = [one.name]
        for _, workload, figure, form in _COLUMNS:
            value = one.value(workload, figure)
            cells.append("failed" if workload in one.errors else "–" if value is None else form.format(value))
        starts = sorted(one.start_s)
        cells.append(f"{starts[len(starts) // 2]:.1f}" if starts else "failed")
        cells.append(f"{one.peak_bytes / 1e9:.2f}" if one.peak_bytes else "–")
        cells.append(f"{one.weight_bytes / 1e6:.0f}" if one.weight_bytes else "–")
        rows.append("| " + " | ".join(cells) + " |")
    rows += ["", "TTFT: from sending a request to its first text, mean over the requests at once. tok/s: of one stream "
             "while it decodes (text1, text1-sampled, image1), of all together from first to last byte (the others).",
             ""]  # fmt: skip
    rows += [f"- {workload.name}: {workload.about}" for workload in WORKLOADS.values() if not workload.is_once]
    rows += [f"- {AGAIN}: image1's picture once more, with another question of eight words"]
    for one in results.contenders:
        rows += [f"- {one.name} failed at {workload}: {why}" for workload, why in one.errors.items()]
    return "\n".join(rows)


def _floors(results: Results) -> str:
    """How much of the least possible time each of ours needs."""
    rows = ["## Share of the floor", "", "| Trifocal | " + " | ".join(_FLOORS) + " |", "|---|" + "---|" * len(_FLOORS)]
    for one in results.contenders:
        if one.engine == "trifocal":
            cells = [_floor_share(one, workload, *counts) for workload, counts in _FLOORS.items()]
            rows.append("| " + " | ".join([one.precision, *cells]) + " |")
    rows += ["", "The floor is the time that the products of a workload take at the rate of large products, or its "
             "weights at the speed of memory, whichever is longer in each step, both measured beside the engine; "
             "attention, norms, sampling, decoding of pictures and HTTP count nothing in it."]  # fmt: skip
    return "\n".join(rows)


_FLOORS = {"image8": (8, 8), "text16": (16, 0), "text32": (32, 0)}


def _floor_share(one: Figures, workload: str, streams: int, pictures: int) -> str:
    floor, wall = floor_of(one, workload, streams, pictures), one.value(workload, "wall_s")
    return "–" if floor is None or wall is None else f"{floor / wall:.0%} of {wall:.1f} s"


def _charts(results: Results) -> dict[str, tuple[str, str]]:
    streams = {"text1": 1, "text2": 2, "text4": 4, "text8": 8, "text16": 16, "text32": 32}
    load: dict[str, Curve] = {}
    for one in results.contenders:
        curve = [
            (float(count), value) for name, count in streams.items() if (value := one.value(name, "tok_s")) is not None
        ]
        if len(curve) > 1:
            load[one.name] = curve
    context = {one.name: context_cost(one) for one in results.contenders if context_cost(one)}
    found = {}
    if load:
        title = "All streams' output over streams at once"
        found["concurrency"] = (title, chart(title, "streams", "tok/s", load))
    if context:
        title = "A step of eight streams over their context"
        found["context"] = (title, chart(title, "tokens of context", "ms", context))
    return found
