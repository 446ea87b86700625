"""What takes part: an engine with one format of weights, started for a while and asked."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import httpx

from benchmarks.peers.process import ContenderError, ProcessTree, free_port
from trifocal.bench.load import Measured, Target, run_load
from trifocal.bench.workload import Question
from trifocal.cli.client import Client

Precision = Literal["bf16", "int8", "int4"]
_START_SECONDS = 600.0


class Session(Protocol):
    """A contender that runs."""

    tree: ProcessTree
    start_s: float  # from its command to being ready

    def ask(self, questions: Sequence[Question], is_cached: bool = False) -> list[Measured]:
        """Ask all at once. `is_cached`: what was computed for an earlier prompt may be used."""


@dataclass(frozen=True)
class Contender:
    """`weight_bytes`: what a decoding step reads of its weights, if known. `only`: the workloads it is there for."""

    name: str
    engine: str
    version: str
    precision: Precision
    start: Callable[[Path], Any] = field(repr=False)  # (log file) -> context manager of a Session
    weight_bytes: int | None = None
    only: tuple[str, ...] | None = None

    @property
    def is_ours(self) -> bool:
        """Whether it is Trifocal."""
        return self.engine == "trifocal"


@dataclass
class ServerSession:
    """A server of the OpenAI API."""

    tree: ProcessTree
    url: str
    model: str
    start_s: float
    fields: Mapping[str, Any]

    def ask(self, questions: Sequence[Question], is_cached: bool = False) -> list[Measured]:
        """See `Session`."""
        fields = {} if is_cached else dict(self.fields)
        return asyncio.run(run_load(Target(self.url, self.model, fields=fields), questions, len(questions)))


def server(
    command: Callable[[int], Sequence[str]],
    env: Mapping[str, str] | None = None,
    fields: Mapping[str, Any] | None = None,
) -> Callable[[Path], Any]:
    """How to start a server: its command for a port. `fields` are sent unless what is cached may be used."""

    @contextmanager
    def start(log: Path) -> Iterator[ServerSession]:
        port, started = free_port(), time.perf_counter()
        url = f"http://127.0.0.1:{port}"
        with ProcessTree(command(port), log, env) as tree, Client(url) as client:
            while not client.is_ready():
                tree.check()
                if time.perf_counter() - started > _START_SECONDS:
                    raise ContenderError(f"it was not ready after {_START_SECONDS:.0f} s: {tree.last_words()}")
                time.sleep(0.02)
            start_s = time.perf_counter() - started
            yield ServerSession(tree, url, client.first_model(), start_s, dict(fields or {}))

    return start


@dataclass
class WorkerSession:
    """An engine without a server, in a process that reads questions as JSON lines and answers in JSON lines.

    A line to it: {"questions": [...]}; from it: {"ready": true} once, then {"measured": [...]} or {"error": "..."}.
    """

    tree: ProcessTree
    start_s: float

    def ask(self, questions: Sequence[Question], is_cached: bool = False) -> list[Measured]:
        """See `Session`; such engines keep nothing."""
        answer = self.send({"questions": [asdict(question) for question in questions]})
        if "error" in answer:
            raise ContenderError(answer["error"])
        return [Measured(**one) for one in answer["measured"]]

    def send(self, message: dict[str, Any]) -> dict[str, Any]:
        """One line there, one back."""
        there, back = self.tree.pipes()
        try:
            there.write(json.dumps(message).encode() + b"\n")
            there.flush()
        except OSError:
            self.tree.check()
            raise
        return self.receive(back.readline())

    def receive(self, line: bytes) -> dict[str, Any]:
        """A line as an object; none is the worker's end."""
        if not line:
            self.tree.process.wait()
            self.tree.check()
        answer: dict[str, Any] = json.loads(line)
        return answer


def worker(command: Sequence[str], env: Mapping[str, str] | None = None) -> Callable[[Path], Any]:
    """How to start a worker process."""

    @contextmanager
    def start(log: Path) -> Iterator[WorkerSession]:
        started = time.perf_counter()
        with ProcessTree(command, log, env, talks=True) as tree:
            session = WorkerSession(tree, 0.0)
            session.receive(tree.pipes()[1].readline())
            session.start_s = time.perf_counter() - started
            yield session

    return start


def is_failure(error: BaseException) -> bool:
    """Whether an exception is a contender's and no mistake of the benchmark's own."""
    return isinstance(error, ContenderError | httpx.HTTPError | ValueError | OSError)
