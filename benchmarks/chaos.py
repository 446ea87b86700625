"""Kill the engine again and again while clients stream, and compare every byte with what they get in peace.

    python benchmarks/chaos.py [--kills 100] [--stops 10] [--json FILE]

A real server on the built-in model in float32. Sixteen clients, with pictures, clips and text, greedy and seeded, ask
the same question over and over. After a calm round, whose answers are the measure, the engine process gets SIGKILL and
SIGSTOP at random moments, SIGKILL while it starts as well; the iteration timeout has to notice a SIGSTOP.

Expected before measuring: every stream ends complete and equal to the calm one, byte for byte, but for the fields that
differ between any two requests (id, created) and the number of cached tokens, which tells what the caches held. A pause
is a start of the engine (an import of torch, mostly) plus the prompts computed again; after a SIGSTOP the timeout comes
on top. The exit status is 1 if a byte differs, a stream fails, or something is left behind.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import statistics
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx

from trifocal.cli.client import media_part
from trifocal.cli.local_server import LocalServer

DEMO = Path(__file__).parents[1] / "trifocal" / "demo"
_VARIES = re.compile(rb'"(id|created)":("[^"]*"|\d+),|"prompt_tokens_details":\{[^}]*\}')
_QUESTIONS = (
    ([], "Who are you?"), (["circle.png"], "Describe the image."), ([], "Hello"), (["pair.png"], "Describe the image."),
    ([], "What is the image content?"), (["heart.png", "word.png"], "Describe the second image."),
    ([], "How many triangles are there?"), (["up.mp4"], "Which shape moves?"),
)  # fmt: skip


@dataclass(frozen=True)
class Storm:
    """How much is done to the engine, and when."""

    kills: int = 100
    stops: int = 10
    mean_s: float = 6.0  # between two of them; moments are uniform in 0 .. 2 * mean
    timeout_s: float = 5.0  # for an iteration
    num_clients: int = 16
    max_tokens: int = 256
    seed: int = 0


@dataclass
class Report:
    """What came of it. Pauses are silences of a stream that are longer than any in the calm round."""

    storm: Storm
    num_streams: int = 0
    num_events: int = 0
    lost: int = 0  # events that a stream lacks at its end, or misses in the middle
    doubled: int = 0  # events beyond the calm stream's
    changed: int = 0
    failed: list[str] = field(default_factory=list)
    left_behind: list[str] = field(default_factory=list)
    restarts: int = 0
    replays: int = 0
    calm_s: float = 0.0  # median of a whole stream
    pauses_s: dict[str, float] = field(default_factory=dict)
    added_s: dict[str, float] = field(default_factory=dict)  # to a whole stream, of those that met a death

    @property
    def is_good(self) -> bool:
        """Whether nobody could tell that anything had happened, but by the clock."""
        return not (self.lost or self.doubled or self.changed or self.failed or self.left_behind)


@dataclass
class Stream:
    """One answer as it came: events without what varies, and the silences before each."""

    events: list[bytes] = field(default_factory=list)
    silences_s: list[float] = field(default_factory=list)
    error: str | None = None

    @property
    def total_s(self) -> float:
        """From the request to the last event."""
        return sum(self.silences_s)


def bodies(storm: Storm) -> list[dict[str, Any]]:
    """What each client asks for: every question greedy, then seeded in one way or another."""
    found = []
    for index in range(storm.num_clients):
        names, text = _QUESTIONS[index % len(_QUESTIONS)]
        content = [*(media_part(DEMO / "samples" / name) for name in names), {"type": "text", "text": text}]
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": storm.max_tokens, "ignore_eos": True}
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        if index < len(_QUESTIONS):
            body |= {"temperature": 0, "repetition_penalty": 1.1 if index % 2 else 1.0}
        else:
            body |= {"temperature": 1.0, "top_p": 0.95, "seed": index, "n": 1 + index % 2}
            body |= {"presence_penalty": 0.5, "min_tokens": storm.max_tokens // 2, "ignore_eos": False}
        found.append(body)
    return found


async def ask(client: httpx.AsyncClient, body: dict[str, Any], stream: Stream) -> Stream:
    """Fill `stream` with an answer. Choices come in any order beside each other, so events are sorted by choice."""
    last = time.perf_counter()
    try:
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            async for line in response.aiter_lines():
                if line:
                    now = time.perf_counter()
                    stream.silences_s.append(now - last)
                    stream.events.append(_VARIES.sub(b"", line.encode()))
                    last = now
            if response.status_code != 200 or stream.events[-1:] != [b"data: [DONE]"]:
                stream.error = f"status {response.status_code}, ended with {stream.events[-1:]}"
    except httpx.HTTPError as error:
        stream.error = repr(error)
    stream.events.sort(key=_choice)
    return stream


def _choice(event: bytes) -> int:
    found = re.search(rb'"index":(\d+)', event)
    return int(found[1]) if found else 1 << 30  # usage, then [DONE]: sorting keeps their order


def count_differences(report: Report, calm: Stream, stream: Stream) -> None:
    """Add what distinguishes a stream from the calm one."""
    report.num_streams += 1
    report.num_events += len(stream.events)
    if stream.error is not None:
        report.failed.append(stream.error)
    report.lost += max(0, len(calm.events) - len(stream.events))
    report.doubled += max(0, len(stream.events) - len(calm.events))
    report.changed += sum(a != b for a, b in zip(calm.events, stream.events, strict=False))


# ---------------------------------------------------------------------------------------------- the storm


def engine_of(server_pid: int) -> int | None:
    """The engine's process id, None between two engines."""
    children = Path(f"/proc/{server_pid}/task/{server_pid}/children").read_text().split()
    for child in children:
        with suppress(OSError):
            if b"trifocal.engine.process" in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
    return None


async def rage(storm: Storm, server_pid: int, streams: list[Stream]) -> None:
    """Do all that is planned at random moments: kill whatever engine there is, stop one that computes."""
    moments = random.Random(storm.seed)
    blows = [signal.SIGKILL] * storm.kills + [signal.SIGSTOP] * storm.stops
    moments.shuffle(blows)
    for blow in blows:
        await asyncio.sleep(moments.uniform(0, 2 * storm.mean_s))
        while (pid := engine_of(server_pid)) is None or (blow == signal.SIGSTOP and not await _computes(streams)):
            await asyncio.sleep(0.001)
        with suppress(ProcessLookupError):
            os.kill(pid, blow)
        while blow == signal.SIGSTOP and Path(f"/proc/{pid}").exists():  # until the timeout has noticed
            await asyncio.sleep(0.05)


async def _computes(streams: list[Stream]) -> bool:
    before = sum(len(stream.events) for stream in streams)
    await asyncio.sleep(0.05)
    return sum(len(stream.events) for stream in streams) > before


async def measure(storm: Storm, url: str, server_pid: int) -> Report:
    """The calm round, then the storm until it is over and the last streams have ended."""
    report = Report(storm)
    asked = bodies(storm)
    limits = httpx.Limits(max_connections=len(asked) + 1)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits, trust_env=False) as client:
        calm = await asyncio.gather(*(ask(client, body, Stream()) for body in asked))
        assert all(stream.error is None for stream in calm), [stream.error for stream in calm]
        streams: list[Stream] = []
        pairs: list[tuple[Stream, Stream]] = []
        raging = asyncio.create_task(rage(storm, server_pid, streams))

        async def go_on(body: dict[str, Any], expected: Stream) -> None:
            while not raging.done():
                stream = Stream()
                streams.append(stream)
                pairs.append((expected, await ask(client, body, stream)))

        await asyncio.gather(*(go_on(body, expected) for body, expected in zip(asked, calm, strict=True)))
        await raging
        for expected, stream in pairs:
            count_differences(report, expected, stream)
        _time(report, calm, pairs)
        await _check_end(report, client, server_pid)
    return report


def _time(report: Report, calm: list[Stream], pairs: list[tuple[Stream, Stream]]) -> None:
    usual = max(max(stream.silences_s) for stream in calm)
    pauses = [silence for _, stream in pairs for silence in stream.silences_s if silence > usual]
    met = [(a, b) for a, b in pairs if max(b.silences_s, default=0) > usual]
    report.calm_s = statistics.median(stream.total_s for stream in calm)
    report.pauses_s = _percentiles(pauses)
    report.added_s = _percentiles([stream.total_s - expected.total_s for expected, stream in met])


def _percentiles(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    ordered = sorted(values)
    ranks = {"median": 0.5, "p99": 0.99, "max": 1.0}
    return {name: round(ordered[max(0, -int(-rank * len(ordered) // 1) - 1)], 3) for name, rank in ranks.items()}


async def _check_end(report: Report, client: httpx.AsyncClient, server_pid: int) -> None:
    """Nothing is held for requests that have all ended."""
    numbers: dict[str, float] = {}
    for _ in range(100):
        lines = (await client.get("/metrics")).text.splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if line.startswith("trifocal:"))
        numbers = {name.partition("{")[0].removeprefix("trifocal:"): float(value) for name, value in pairs}
        held = ["num_requests_running", "num_requests_waiting", "kv_blocks_used", "encoder_pinned_bytes"]
        report.left_behind = [f"{name} {numbers[name]:g}" for name in held if numbers[name]]
        report.left_behind += [f"memory {link}" for link in _media_memory(server_pid)]
        if not report.left_behind:
            break
        await asyncio.sleep(0.05)
    report.restarts = int(numbers["engine_restarts_total"])
    report.replays = int(numbers["requests_replayed_total"])


def _media_memory(pid: int) -> list[str]:
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            found += [target] if (target := os.readlink(link)).startswith("/memfd:trifocal-media") else []
    return found


def run(storm: Storm) -> Report:
    """Start a server, measure, stop it."""
    environment = {
        "TRIFOCAL_ENGINE_ITERATION_TIMEOUT_S": str(storm.timeout_s),
        "TRIFOCAL_ENGINE_MAX_RESTARTS": "50",  # deaths in a row, before a token has come, are what is asked for here
    }
    with patch.dict(os.environ, environment), LocalServer([str(DEMO / "model"), "--dtype", "float32"]) as server:
        server_pid = server.pid
        report = asyncio.run(measure(storm, server.url, server_pid))
        last = engine_of(server_pid)
    left = [pid for pid in (server_pid, last) if pid is not None and Path(f"/proc/{pid}").exists()]
    report.left_behind += [f"process {pid}" for pid in left]
    return report


def render(report: Report) -> str:
    """The report as text."""
    storm = report.storm
    rows = [
        f"{storm.kills} kills and {storm.stops} stops, every {storm.mean_s:g} s on average; "
        f"{report.restarts} restarts, {report.replays} replays",
        f"{report.num_streams} streams with {report.num_events} events: lost {report.lost}, doubled {report.doubled}, "
        f"changed {report.changed}, failed {len(report.failed)}, left behind {len(report.left_behind)}",
        f"a stream takes {report.calm_s:.2f} s in peace",
    ]
    for name, values in (("pause", report.pauses_s), ("added to a stream", report.added_s)):
        rows.append(f"{name}: " + ", ".join(f"{key} {value:.2f} s" for key, value in values.items()))
    return "\n".join([*rows, *report.failed[:5], *report.left_behind])


def main() -> int:
    """Measure and report; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    usual = Storm()
    parser.add_argument("--kills", type=int, default=usual.kills)
    parser.add_argument("--stops", type=int, default=usual.stops)
    parser.add_argument("--mean-s", type=float, default=usual.mean_s, help="seconds between two of them on average")
    parser.add_argument("--seed", type=int, default=usual.seed)
    parser.add_argument("--json", help="file to write the report to")
    args = parser.parse_args()
    report = run(Storm(kills=args.kills, stops=args.stops, mean_s=args.mean_s, seed=args.seed))
    print(render(report))
    if args.json:
        Path(args.json).write_text(json.dumps(asdict(report), indent=1) + "\n", encoding="utf-8")
    return 0 if report.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
