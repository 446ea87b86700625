"""Sends hostile inputs to a real server on the built-in model and says whether it is still itself afterwards."""

from __future__ import annotations

import asyncio
import json
import os
import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tools.hostile.case import CHAT, MODEL, Call, Case, ask_about_bytes, chat
from tools.hostile.clips import sample as clip
from tools.hostile.document import document_calls
from tools.hostile.pictures import encoded, sample
from tools.hostile.web import HOST, Web, hostile_web
from trifocal.cli.local_server import LocalServer

ROOT = Path(__file__).parents[2]
BUILT_IN = ROOT / "trifocal" / "demo" / "model"
MAX_GROWTH = 64 << 20
DECODE_S = {"image": 5, "video": 10}
FETCH_S = 2
ANSWER_S = 60.0  # for any answer: several decoder jobs and their turn in the queue
AT_ONCE = 4
_WARM_UP_SHARE = 5  # one of so many cases is sent before memory is looked at: each path has been taken then
_SETTLE_S = 20.0
ENGINE, DECODER = b"trifocal.engine.process", b"trifocal.media.decode.process"


@dataclass
class Report:
    """What came of it. `problems` is empty if every promise was kept."""

    statuses: Counter[int] = field(default_factory=Counter)
    slowest: tuple[float, str] = (0.0, "")
    filling: dict[str, int] = field(default_factory=dict)  # bytes by kind of process, over the warm-up
    growth: dict[str, int] = field(default_factory=dict)  # the same, over what came after it
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        statuses = ", ".join(f"{count} x {status}" for status, count in sorted(self.statuses.items()))
        seconds, name = self.slowest
        lines = [
            f"{sum(self.statuses.values())} answers: {statuses}",
            f"slowest: {seconds:.1f} s ({name}; limit {ANSWER_S:g} s)",
            f"memory: while warming up {_told(self.filling)}; since then {_told(self.growth)} "
            f"(limit {MAX_GROWTH >> 20} together)",
            *(self.problems or ["every promise kept"]),
        ]
        return "\n".join(lines)


def _told(memory: dict[str, int]) -> str:
    return ", ".join(f"{name} {number / 2**20:+.1f} MiB" for name, number in memory.items())


def attack(
    cases: Sequence[Case], seeds: Iterable[int], *, generated: int = 0, seconds: float | None = None, warm_up: int = 0
) -> Report:
    """Start a server, send every case with each seed (until `seconds` are over), look after it.

    Memory is looked at after `warm_up` rounds of everything; after some of everything if that is 0.

    With each seed also come up to `generated` requests for each operation and mode of the server's OpenAPI document.
    """
    with tempfile.TemporaryDirectory() as folder, _environment():
        media = _media_folder(Path(folder))
        words = [
            str(BUILT_IN), "--served-model-name", MODEL, "--allowed-local-media-path", str(media),
            "--allowed-media-networks", f"{HOST}/32", "--max-num-seqs", "8",
            "--encoder-cache-gib", "0.01", "--mm-processor-cache-gb", "0.01",  # a cache that fills is no leak
            "--override-generation-config", json.dumps({"max_new_tokens": 16}),
            "--image-decode-timeout", str(DECODE_S["image"]), "--video-decode-timeout", str(DECODE_S["video"]),
        ]  # fmt: skip
        with LocalServer(words) as server:
            return asyncio.run(_attack(server, media, cases, seeds, generated, seconds, warm_up))


async def _attack(
    server: LocalServer, media: Path, cases: Sequence[Case], seeds: Iterable[int], generated: int,
    seconds: float | None, warm_up: int,
) -> Report:  # fmt: skip
    report = Report()
    limits = httpx.Limits(max_connections=2 * AT_ONCE)
    async with (
        hostile_web() as web,
        httpx.AsyncClient(base_url=server.url, timeout=ANSWER_S, limits=limits) as client,
    ):
        before = await _answers(client)
        document = (await client.get("/openapi.json")).raise_for_status().json()
        await _warm_up(client)
        engine, memory = _engine(server.pid), _memory(server.pid)
        first = Report()
        for seed in range(-1, -1 - max(warm_up, 1), -1):
            await _send_all(client, _calls(cases[:: 1 if warm_up else _WARM_UP_SHARE], seed, media, web), first)
        report.problems += first.problems
        report.filling = await _settled_growth(server.pid, memory)
        memory = _memory(server.pid)
        end = None if seconds is None else time.monotonic() + seconds
        for seed in seeds:
            if end is not None and time.monotonic() > end:
                break
            await _send_all(client, _calls(cases, seed, media, web), report)
            made = await asyncio.to_thread(list, document_calls(document, generated, seed) if generated else [])
            await _send_all(client, iter(made), report)
        report.problems += [f"the canary was reached: {text!r}" for text in web.reached[:5]]
        if _engine(server.pid) != engine:
            report.problems.append("the engine was restarted")
        if await _answers(client) != before:
            report.problems.append("good requests are answered otherwise than before")
        report.growth = await _settled_growth(server.pid, memory)
    if sum(report.growth.values()) > MAX_GROWTH:
        report.problems.append("memory grew by more than that")
    return report


# ---------------------------------------------------------------------------------------------- sending


def _calls(cases: Sequence[Case], seed: int, media: Path, web: Web) -> Iterator[tuple[str, Call]]:
    """Requests with the ports and folders of this run in their URLs."""
    places = {
        "{canary}": str(web.canary_port), "{web}": str(web.port), "{media}": str(media).lstrip("/"),
        "{long}": "x" * 5000, "{nul}": "\\u0000",
    }  # fmt: skip
    for case in cases:
        call = case.call(seed)
        if case.kind == "url":
            text = call.body.decode()
            for place, value in places.items():
                text = text.replace(place, value)
            call = Call(text.encode(), call.path, call.method, call.headers)
        yield f"{case.name} (seed {seed})", call


async def _send_all(client: httpx.AsyncClient, calls: Iterator[tuple[str, Call]], report: Report) -> None:
    async def send() -> None:
        for name, call in calls:  # shared: whoever is free takes the next
            await _send(client, name, call, report)

    await asyncio.gather(*(send() for _ in range(AT_ONCE)))


async def _send(client: httpx.AsyncClient, name: str, call: Call, report: Report) -> None:
    before = time.monotonic()
    try:
        answer = await client.request(call.method, call.path, content=call.body, headers=dict(call.headers))
    except httpx.HTTPError as error:
        report.problems.append(f"{name}: {type(error).__name__} after {time.monotonic() - before:.1f} s")
        return
    report.statuses[answer.status_code] += 1
    report.slowest = max(report.slowest, (time.monotonic() - before, name))
    problem = _judge(answer) or call.check(answer)
    if problem:
        report.problems.append(f"{name}: {problem}: {answer.text[:300]}")


def _judge(answer: httpx.Response) -> str | None:
    """What is wrong with an answer, whatever was asked."""
    if answer.status_code >= 500:
        return f"status {answer.status_code}"
    if "root:" in answer.text:
        return "it tells what it should not"
    if answer.headers.get("content-type", "").startswith("text/event-stream"):
        return "an error in the stream" if re.search(r'"type": ?"server_error"', answer.text) else None
    if answer.status_code >= 400 and answer.request.method == "POST":
        try:
            error = answer.json()["error"]
        except (ValueError, KeyError, TypeError):
            return "an error without its body"
        if not error["message"] or len(error["message"]) > 2000:
            return "an error without a usable message"
    return None


async def _answers(client: httpx.AsyncClient) -> list[Any]:
    """What good requests are answered: this must not change."""
    calls = [
        chat("Hello, how are you?", max_tokens=16, temperature=0),
        ask_about_bytes(sample("PNG")),
        ask_about_bytes(clip("mp4"), "video_url", "video/mp4"),
    ]
    found = []
    for call in calls:
        body = {**json.loads(call.body), "temperature": 0, "cache_salt": os.urandom(8).hex()}
        answer = await client.post(CHAT, json=body)
        answer.raise_for_status()
        found.append(answer.json()["choices"])
    return found


async def _warm_up(client: httpx.AsyncClient) -> None:
    """Have every decoder process started, every library loaded, every pool filled before memory is looked at."""
    large = encoded(_large_picture(), "JPEG")
    for _ in range(3):
        calls = [ask_about_bytes(large), ask_about_bytes(clip("mp4"), "video_url")] * 8
        await asyncio.gather(*(client.post(call.path, content=call.body) for call in calls))


def _large_picture() -> Any:
    from PIL import Image

    return Image.effect_noise((2000, 1500), 60).convert("RGB")


# ---------------------------------------------------------------------------------------------- its processes


def _processes(pid: int) -> list[int]:
    """The process, its children and theirs."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


def _memory(pid: int) -> Counter[str]:
    """Resident bytes of all of them that are no file's, by kind of process."""
    total: Counter[str] = Counter()
    for process in _processes(pid):
        try:
            status = Path(f"/proc/{process}/status").read_text()
            command = Path(f"/proc/{process}/cmdline").read_bytes()
        except FileNotFoundError:
            continue
        name = "engine" if ENGINE in command else "decoders" if DECODER in command else "server"
        total[name] += sum(int(value) << 10 for value in re.findall(r"Rss(?:Anon|Shmem):\s+(\d+)", status))
    return total


def _engine(pid: int) -> int:
    """The engine's process id."""
    [engine] = [each for each in _processes(pid) if ENGINE in Path(f"/proc/{each}/cmdline").read_bytes()]
    return engine


async def _settled_growth(pid: int, before: Counter[str]) -> dict[str, int]:
    """Bytes more than `before`, once work that was given up on has ended."""
    deadline = time.monotonic() + _SETTLE_S
    while True:
        after = _memory(pid)
        growth = {name: after[name] - before[name] for name in after}
        if sum(growth.values()) <= MAX_GROWTH or time.monotonic() > deadline:
            return growth
        await asyncio.sleep(0.5)


# ---------------------------------------------------------------------------------------------- its surroundings


@contextmanager
def _environment() -> Iterator[None]:
    """The server's variables: short fetches, little memory to begin with."""
    names = {
        "TRIFOCAL_IMAGE_FETCH_TIMEOUT": str(FETCH_S),
        "TRIFOCAL_VIDEO_FETCH_TIMEOUT": str(FETCH_S),
        "TRIFOCAL_CPU_KVCACHE_SPACE": "0.03",  # all of it is touched sooner or later, which is no leak
        "OMP_NUM_THREADS": "1",  # threads that wait for each other are what slows down a busy machine most
    }
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _media_folder(folder: Path) -> Path:
    """An allowed folder, a secret beside it, and links and pipes in it."""
    media = folder / "media"
    media.mkdir()
    (folder / "secret").write_text("root: a secret")
    (media / "good.png").write_bytes(sample("PNG"))
    (media / "link").symlink_to("/etc/passwd")
    (media / "loop").symlink_to(media / "loop")
    os.mkfifo(media / "pipe")
    return media
