"""Half an hour of everything at once: memory and shared memory stay flat, and every answer is one that was expected.

    python -m benchmarks.soak [--minutes 30] [--clients 6] [--figure soak.svg] [--model FOLDER]

Clients ask without a pause, at random: text, pictures and clips, streamed or not, one choice or two; bodies that are
broken, media that are none, and clients that hang up in the middle. Every two seconds the resident memory of the server
and of the processes below it, and the bytes of shared memory that they made, are written down.

Shared memory is counted where it is named (/dev/shm) and where it is not (memory files that a process holds open).

Caches are made small, since one that fills is no leak: 30 MB of KV blocks, 10 MB of embeddings, 10 MB of
decoded pictures.

Expected before measuring: caches fill during the first minutes; after that no line rises. Bounds, exit status 1 beyond
them: the mean of the last tenth lies at most 64 MiB (memory) and 8 MiB (shared memory) above that of the second tenth;
no answer but 200, the expected refusals and 503; when all clients are gone nothing is held.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import stat
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import av
import httpx
import numpy as np

from benchmarks.overload import BUILT_IN, memory
from trifocal.bench.workload import Shape, make_questions
from trifocal.cli.client import bytes_part
from trifocal.cli.local_server import LocalServer

CHAT = "/v1/chat/completions"
EVERY_S = 2.0
MAX_GROWTH = {"memory": 64.0, "shared": 8.0}  # MiB
SHARED = Path("/dev/shm")


@dataclass
class Log:
    """What was seen: answers by kind and status, and samples of (seconds, MiB of memory, MiB of shared memory)."""

    answers: Counter[str] = field(default_factory=Counter)
    surprises: list[str] = field(default_factory=list)
    samples: list[tuple[float, float, float]] = field(default_factory=list)


# ---------------------------------------------------------------------------------------------- what is asked


def text(random: Random) -> tuple[dict[str, Any], set[int]]:
    """Words."""
    [question] = make_questions(Shape(1, 1, random.randrange(4, 200), 1), str(random.random()), 1)
    return {"messages": question.messages, "max_tokens": random.randrange(1, 64)}, {200, 503}


def pictures(random: Random) -> tuple[dict[str, Any], set[int]]:
    """One to four pictures of any size; every other time ones that were seen before."""
    seed = str(random.choice([random.random(), random.randrange(20)]))
    size = (random.randrange(28, 600), random.randrange(28, 600))
    shape = Shape(1, 1, 8, 1, num_images=random.randrange(1, 5), image_size=size)
    return {"messages": make_questions(shape, seed, 1)[0].messages, "max_tokens": 16}, {200, 503}


def clip(random: Random) -> tuple[dict[str, Any], set[int]]:
    """A short video."""
    pixels = np.random.default_rng(random.randrange(1 << 30)).integers(0, 255, (2, 64, 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for number in range(random.randrange(4, 24)):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels[number % 2], format="rgb24")))
        container.mux(stream.encode())
    content = [bytes_part(file.getvalue()), {"type": "text", "text": "what happens here"}]
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 8}, {200, 503}


def broken(random: Random) -> tuple[dict[str, Any], set[int]]:
    """Requests that must be refused."""
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAA"}}
    bodies: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": [part]}]},
        {"messages": "no list"},
        {"messages": [{"role": "user", "content": "hello"}], "temperature": -1},
        {"messages": [{"role": "user", "content": "word " * 20_000}]},
        {"messages": [{"role": "user", "content": "hello"}], "n": 10_000},
    ]
    return random.choice(bodies), {400, 503}


KINDS: list[Callable[[Random], tuple[dict[str, Any], set[int]]]] = [text, text, pictures, pictures, clip, broken]


# ---------------------------------------------------------------------------------------------- asking


async def client(http: httpx.AsyncClient, random: Random, until: float, log: Log) -> None:
    """Ask until the time is over."""
    while time.monotonic() < until:
        kind = random.choice(KINDS)
        body, expected = kind(random)
        body |= {"stream": random.random() < 0.5, **({"n": 2} if kind is not broken and random.random() < 0.2 else {})}
        status = await (hang_up if kind is not broken and random.random() < 0.1 else ask)(http, body)
        log.answers[f"{kind.__name__} {status or 'hung up'}"] += 1
        if status and status not in expected:
            log.surprises.append(f"{kind.__name__}: {status}")
        if status == 503:
            await asyncio.sleep(1.0)


async def ask(http: httpx.AsyncClient, body: dict[str, Any]) -> int:
    """The status; 500 for a stream that does not end as it should."""
    response = await http.post(CHAT, json=body)
    is_cut = response.status_code == 200 and body["stream"] and "data: [DONE]" not in response.text
    return 500 if is_cut else response.status_code


async def hang_up(http: httpx.AsyncClient, body: dict[str, Any]) -> int:
    """Leave before the end; 0."""
    try:
        await asyncio.wait_for(http.post(CHAT, json={**body, "max_tokens": 400, "ignore_eos": True}), 0.2)
    except TimeoutError:
        return 0
    return 0


async def watch(server: LocalServer, before: set[Path], until: float, log: Log) -> None:
    """Write down sizes until the time is over."""
    started = time.monotonic()
    while time.monotonic() < until:
        resident = sum(map(memory, processes(server.pid))) / (1 << 20)
        log.samples.append((time.monotonic() - started, resident, shared_bytes(server.pid, before) / (1 << 20)))
        await asyncio.sleep(EVERY_S)


def shared_bytes(root: int, before: set[Path]) -> int:
    """Bytes in files below /dev/shm that were not there before, and in nameless ones; each once."""
    sizes: dict[tuple[int, int], int] = {}
    named = [file for path in SHARED.glob("trifocal-*") if path not in before for file in path.glob("*")]
    for pid in processes(root):
        with suppress(OSError):
            named += [link for link in Path(f"/proc/{pid}/fd").iterdir() if "/memfd:" in os.readlink(link)]
    for path in named:
        with suppress(OSError):  # gone meanwhile
            facts = path.stat()
            sizes[facts.st_dev, facts.st_ino] = facts.st_size if stat.S_ISREG(facts.st_mode) else 0
    return sum(sizes.values())


def processes(root: int) -> list[int]:
    """A process and all below it that can be read."""
    found = [root]
    for pid in found:
        try:
            for task in Path(f"/proc/{pid}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
        except OSError:
            continue
    return [pid for pid in found if Path(f"/proc/{pid}/statm").exists()]


async def soak(server: LocalServer, before: set[Path], minutes: float, clients: int) -> Log:
    """Everything at once; the log afterwards."""
    log, until = Log(), time.monotonic() + 60 * minutes
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server.url, timeout=600, limits=limits, trust_env=False) as http:
        askers = [client(http, Random(number), until, log) for number in range(clients)]
        await asyncio.gather(watch(server, before, until, log), *askers)
        log.surprises += await leftovers(http)
    return log


async def leftovers(http: httpx.AsyncClient) -> list[str]:
    """Gauges that are not back at zero, ten seconds after the last client."""
    names = ("num_requests_running", "num_requests_waiting", "kv_blocks_used", "encoder_pinned_bytes",
             "requests_queued", "tokens_queued", "media_bytes_in_flight")  # fmt: skip
    held: list[str] = []
    for _ in range(100):
        lines = (await http.get("/metrics")).text.splitlines()
        rows = [line for line in lines if line.startswith(tuple(f"trifocal:{name}{{" for name in names))]
        held = [row for row in rows if float(row.rsplit(" ", 1)[1]) != 0]
        if not held:
            break
        await asyncio.sleep(0.1)
    return held


# ---------------------------------------------------------------------------------------------- reporting


def growth(values: list[float]) -> float:
    """How far the mean of the last tenth lies above that of the second tenth."""
    tenth = max(len(values) // 10, 1)
    early, late = values[tenth : 2 * tenth] or values[:1], values[-tenth:]
    return sum(late) / len(late) - sum(early) / len(early)


def figure(samples: list[tuple[float, float, float]]) -> str:
    """Memory and shared memory over time as an SVG."""
    width, height, most = 900, 260, max(max(sample[1:]) for sample in samples) or 1.0
    last = samples[-1][0] or 1.0
    curves = ""
    for column, colour, name in ((1, "#1f77b4", "memory of all processes"), (2, "#d62728", "shared memory")):
        points = " ".join(f"{60 + s[0] / last * width:.1f},{20 + height * (1 - s[column] / most):.1f}" for s in samples)
        curves += f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{points}"/>'
        curves += f'<text x="{60 + 250 * (column - 1)}" y="{height + 60}" fill="{colour}">{name}, MiB</text>'
    axes = f'<text x="4" y="30">{most:.0f}</text><text x="4" y="{20 + height}">0</text>'
    axes += f'<text x="{width}" y="{height + 40}">{last / 60:.1f} min</text>'
    axes += f'<rect x="60" y="20" width="{width}" height="{height}" fill="none" stroke="#999"/>'
    size = f'width="{width + 80}" height="{height + 80}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="14">{axes}{curves}</svg>\n'
    )


def main() -> int:
    """Run and report; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(BUILT_IN))
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()
    before = set(SHARED.glob("trifocal-*"))
    os.environ["TRIFOCAL_CPU_KVCACHE_SPACE"] = "0.03"
    small = ["--encoder-cache-gib", "0.01", "--mm-processor-cache-gb", "0.01"]
    with LocalServer([args.model, "--served-model-name", "m", *small]) as server:
        log = asyncio.run(soak(server, before, args.minutes, args.clients))
    if args.figure:
        args.figure.write_text(figure(log.samples), encoding="utf-8")
    print(json.dumps(dict(sorted(log.answers.items())), indent=1))
    grown = {"memory": growth([s[1] for s in log.samples]), "shared": growth([s[2] for s in log.samples])}
    for name, mib in grown.items():
        print(f"{name}: {mib:+.1f} MiB from the second tenth to the last (bound {MAX_GROWTH[name]:g})")
    print(f"surprises: {log.surprises[:10] or 'none'}")
    return 0 if not log.surprises and all(mib <= MAX_GROWTH[name] for name, mib in grown.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
