"""Many more requests at once than the server lets wait: each is answered, none hangs, memory stays flat.

    python benchmarks/overload.py [--requests 2000] [--queue 64] [--rounds 3] [--model FOLDER]

First `--queue` requests are sent to the idle server, then `--rounds` times `--requests` of them at the same moment,
each over a connection of its own. Expected before measuring: about the queue's length is accepted in the first moment
and a few more as places come free; all others get a 503 with Retry-After within seconds. What is accepted waits behind
a full queue at most, so its p99 time to the first token is that of the first, unhurried round, plus the time in which
the server (and this client, on the same cores) deals with the refusals.

Bounds, exit status 1 beyond them: every answer is a complete 200 or a 503 with Retry-After; p99 of accepted TTFT at
most 3 times the unhurried one plus the time until the last refusal; the server's memory after the last round at most
32 MiB above that after the first.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from trifocal.cli.local_server import LocalServer

BUILT_IN = Path(__file__).parents[1] / "trifocal" / "demo" / "model"
WORDS = "what is the colour of the large circle beside the small square and how many of them are there in all".split()
MAX_GROWTH = 32 << 20
PATIENCE_S = 300.0


@dataclass(frozen=True)
class Outcome:
    """One answer: its status, whether it was all there, and the seconds to its first token and to its end."""

    status: int
    is_whole: bool
    first: float
    end: float


@dataclass(frozen=True)
class Verdict:
    """What a burst came to."""

    statuses: dict[int, int]
    broken: int
    p99_first: float
    last_refusal: float

    @classmethod
    def of(cls, outcomes: list[Outcome]) -> Verdict:
        """Sum up."""
        firsts = sorted(outcome.first for outcome in outcomes if outcome.status == 200)
        return cls(
            statuses=dict(Counter(outcome.status for outcome in outcomes)),
            broken=sum(not outcome.is_whole or outcome.status not in (200, 503) for outcome in outcomes),
            p99_first=firsts[min(len(firsts) - 1, int(len(firsts) * 0.99))] if firsts else 0.0,
            last_refusal=max((outcome.end for outcome in outcomes if outcome.status == 503), default=0.0),
        )


async def burst(port: int, count: int, model: str, max_tokens: int = 16) -> list[Outcome]:
    """`count` streaming requests at once, each with a prompt of its own."""
    bodies = [request_of(model, number, max_tokens) for number in range(count)]
    return list(await asyncio.gather(*(ask(port, body) for body in bodies)))


def request_of(model: str, number: int, max_tokens: int) -> bytes:
    """A whole HTTP request. The connection ends with the answer, so that no pool of this client is measured."""
    text = f"{number}: " + " ".join(WORDS[(number + k) % len(WORDS)] for k in range(20))
    body = json.dumps({
        "model": model, "messages": [{"role": "user", "content": text}], "max_tokens": max_tokens,
        "ignore_eos": True, "temperature": 0, "stream": True,
    }).encode()  # fmt: skip
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def ask(port: int, request: bytes) -> Outcome:
    """Send a request and read to the end. No answer within `PATIENCE_S` is status 0."""
    started = time.perf_counter()
    try:
        async with asyncio.timeout(PATIENCE_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            first, rest = 0.0, b""
            while piece := await reader.read(1 << 16):
                first = first or time.perf_counter() - started
                rest += piece
            writer.close()
    except (OSError, TimeoutError, asyncio.IncompleteReadError):
        return Outcome(0, False, 0.0, time.perf_counter() - started)
    status = int(head.split(b" ", 2)[1])
    sought = {200: [b"data: [DONE]"], 503: [b'"overloaded"', b"\nretry-after: "]}.get(status, [])
    is_whole = all(words in head.lower() + rest for words in sought)
    return Outcome(status, is_whole, first, time.perf_counter() - started)


def memory(pid: int) -> int:
    """Resident bytes of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def raise_file_limit(count: int) -> None:
    """Two thousand connections are more files than many shells allow."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(count + 100, hard) if hard > 0 else count + 100, hard))


def main() -> int:
    """Measure and report; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(BUILT_IN))
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--queue", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    raise_file_limit(args.requests)
    flags = [args.model, "--served-model-name", "m", "--max-queued-requests", str(args.queue)]
    with LocalServer(flags) as server:
        asyncio.run(burst(server.port, 8, "m"))  # a first request finds cold files
        calm = Verdict.of(asyncio.run(burst(server.port, args.queue, "m")))
        print(f"unhurried: {calm.statuses}, p99 of TTFT {calm.p99_first:.2f} s", flush=True)
        verdicts, sizes = [], []
        for _ in range(args.rounds):
            verdicts.append(Verdict.of(asyncio.run(burst(server.port, args.requests, "m"))))
            sizes.append(memory(server.pid))
            print(f"{args.requests} at once: {verdicts[-1]}, server {sizes[-1] >> 20} MiB", flush=True)
    broken = calm.broken + sum(verdict.broken for verdict in verdicts)
    p99 = statistics.median(verdict.p99_first for verdict in verdicts)
    bound = 3 * calm.p99_first + statistics.median(verdict.last_refusal for verdict in verdicts)
    growth = sizes[-1] - sizes[0]
    print(
        f"unanswered or broken: {broken} (bound 0); p99 of accepted TTFT, median of rounds: {p99:.2f} s (bound "
        f"{bound:.2f} s); memory {growth / (1 << 20):+.1f} MiB since the first round (bound {MAX_GROWTH >> 20})"
    )
    return 0 if broken == 0 and p99 <= bound and growth <= MAX_GROWTH else 1


if __name__ == "__main__":
    sys.exit(main())
