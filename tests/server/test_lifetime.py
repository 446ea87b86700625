"""Starting and stopping: signals, a dying engine, ports in use, a loop that stays quick under load."""

from __future__ import annotations

import json
import os
import signal
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.helpers import (
    HELLO,
    MODEL,
    Server,
    ask,
    engine_pid,
    eventually,
    image_part,
    launch,
    picture,
)

LONG = {"model": MODEL, "messages": HELLO, "max_tokens": 4000, "ignore_eos": True, "stream": True}
Launch = Callable[..., Server]


@pytest.fixture
def start(checkpoint: Path, tmp_path: Path) -> Iterator[Launch]:
    started: list[Server] = []

    def begin(*flags: str, **options: Any) -> Server:
        started.append(launch(checkpoint, tmp_path / f"{len(started)}.log", *flags, **options))
        return started[-1]

    yield begin
    for server in started:
        server.process.kill()
        server.process.wait()


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def events(server: Server, seen: list[str], begun: threading.Event) -> None:
    """Read a long stream to its end, into `seen`."""
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=LONG, timeout=30) as response:
        for line in response.iter_lines():
            if line:
                seen.append(line.removeprefix("data: "))
                begun.set()


def follow(server: Server) -> tuple[list[str], threading.Thread]:
    """A long stream that has begun, and the thread that reads it."""
    seen: list[str] = []
    begun = threading.Event()
    reader = threading.Thread(target=events, args=(server, seen, begun))
    reader.start()
    assert begun.wait(20)
    return seen, reader


def test_signal_ends_server_and_engine(start: Launch) -> None:
    server = start("--shutdown-timeout", "0.2")
    server.wait_ready()
    child = engine_pid(server)
    seen, reader = follow(server)
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(15) == 0, server.log.read_text()
    reader.join(5)
    assert json.loads(seen[-1])["error"]["type"] == "server_error"
    assert is_gone(child)
    log = server.log.read_text()
    assert "Traceback" not in log and log.count("ready: http://127.0.0.1:") == 1


def test_running_answers_may_finish(start: Launch) -> None:
    server = start("--shutdown-timeout", "30")
    server.wait_ready()
    answers: list[httpx.Response] = []
    body = {"model": MODEL, "messages": HELLO, "max_tokens": 300, "ignore_eos": True}
    asking = threading.Thread(
        target=lambda: answers.append(httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=30))
    )
    asking.start()
    assert eventually(lambda: 'num_requests_running{model_name="tiny"} 1' in httpx.get(f"{server.url}/metrics").text)
    server.process.send_signal(signal.SIGTERM)
    assert eventually(lambda: not accepts(server.port))
    assert server.process.wait(30) == 0
    asking.join(5)
    assert answers[0].json()["usage"]["completion_tokens"] == 300


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def test_engine_that_is_killed(start: Launch) -> None:
    server = start()
    server.wait_ready()
    seen, reader = follow(server)
    os.kill(engine_pid(server), signal.SIGKILL)
    assert server.process.wait(15) == 1, server.log.read_text()
    reader.join(5)
    error = json.loads(seen[-1])["error"]
    assert (error["type"], error["code"]) == ("server_error", "engine_dead")
    assert "Traceback" not in server.log.read_text()


def test_nobody_can_connect_before_it_is_ready_and_a_signal_ends_the_start(start: Launch) -> None:
    server = start()
    while not children_of(server.process.pid):  # the engine process
        assert not accepts(server.port) and server.process.poll() is None
        time.sleep(0.02)
    assert not accepts(server.port)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(15) == 0, server.log.read_text()
    assert "Traceback" not in server.log.read_text()


def children_of(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def test_port_in_use(start: Launch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = start(port=taken.getsockname()[1])
        assert server.process.wait(20) == 2
    log = server.log.read_text()
    assert "Address already in use" in log and "Traceback" not in log


@pytest.mark.parametrize(
    "flag, value, complaint",
    [("--ssl-certfile", "/no/such/file", "--ssl-certfile"), ("--chat-template", "{% if %}", "chat template")],
)
def test_flags_that_cannot_work(start: Launch, flag: str, value: str, complaint: str) -> None:
    server = start(flag, value)
    assert server.process.wait(30) == 2, server.log.read_text()
    log = server.log.read_text()
    assert complaint in log and "Traceback" not in log


def test_health_answers_while_large_pictures_are_preprocessed(server: Server, http: httpx.Client) -> None:
    """Eight pictures of 4000 x 3000 at a time; one probe in a hundred may take longer than 100 ms."""
    messages = ask(*[image_part(picture(4000, 3000, seed=seed)) for seed in range(8)])
    statuses: list[int] = []

    def look() -> None:
        body = {"model": MODEL, "messages": messages, "max_tokens": 1}
        statuses.append(http.post("/v1/chat/completions", json=body).status_code)

    looking = threading.Thread(target=look)
    looking.start()
    times = []
    with httpx.Client(base_url=server.url) as prober:
        while looking.is_alive() or len(times) < 50:
            begun = time.perf_counter()
            assert prober.get("/health").status_code == 200
            times.append(time.perf_counter() - begun)
            time.sleep(0.005)
    looking.join()
    assert statuses == [200]
    assert statistics.quantiles(times, n=100)[98] < 0.1, sorted(times)[-5:]
