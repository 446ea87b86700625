"""Too much: each limit refuses at once with its status and sentence, and nothing of what was refused is left."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.overload import Verdict, burst
from tests.api.helpers import (
    HELLO,
    MODEL,
    Server,
    all_of,
    ask,
    engine_pid,
    eventually,
    holds_nothing,
    image_part,
    metric,
    picture,
    running,
    shared_bytes,
)

CHAT = "/v1/chat/completions"
LONG = {"model": MODEL, "messages": HELLO, "max_tokens": 900, "ignore_eos": True, "temperature": 0, "stream": True}
SHORT = {"model": MODEL, "messages": HELLO, "max_tokens": 1}
QUEUE = 8


def idle(http: httpx.Client) -> bool:
    names = ("requests_queued", "tokens_queued", "media_bytes_in_flight")
    return holds_nothing(http) and all(metric(http, f"trifocal:{name}") == 0 for name in names)


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["x-request-id"]
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    return dict(error)


# ---------------------------------------------------------------------------------------------- the queue


@pytest.fixture(scope="module")
def crowded(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a short queue and one place to run."""
    log = tmp_path_factory.mktemp("crowded") / "server.log"
    with running(checkpoint, log, "--max-num-seqs", "1", "--max-queued-requests", str(QUEUE)) as server:
        yield server


@pytest.fixture
def http(crowded: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=crowded.url, timeout=60) as client:
        assert eventually(lambda: idle(client))
        yield client
        assert eventually(lambda: idle(client)), client.get("/metrics").text


def test_a_crowd_is_answered_to_the_last(crowded: Server, http: httpx.Client) -> None:
    verdict = Verdict.of(asyncio.run(burst(crowded.port, 200, MODEL, max_tokens=4)))
    assert verdict.broken == 0, verdict
    assert sum(verdict.statuses.values()) == 200
    assert QUEUE <= verdict.statuses[200] < 200 and verdict.statuses[503] > 0
    assert metric(http, "trifocal:requests_refused_total") >= verdict.statuses[503]
    assert http.post(CHAT, json=SHORT).status_code == 200


def test_a_full_queue_says_when_to_come_again(crowded: Server, http: httpx.Client) -> None:
    with standing_still(crowded):
        waiting = [begin(crowded, SHORT) for _ in range(QUEUE)]
        assert eventually(lambda: metric(http, "trifocal:requests_queued") == QUEUE)
        for path, body in ((CHAT, SHORT), ("/v1/completions", {"prompt": "a"}), ("/tokenize", {"prompt": "a"})):
            response = http.post(path, json=body)
            error = error_of(response, 503)
            assert (error["code"], error["type"]) == ("overloaded", "server_error")
            assert f"{QUEUE} requests are waiting (--max-queued-requests)" in error["message"]
            assert 1 <= int(response.headers["retry-after"]) <= 60
        assert http.get("/health").status_code == http.get("/ready").status_code == 200
        assert http.get("/metrics").status_code == http.get("/v1/models").status_code == 200
        for connection in waiting:
            connection.close()
        assert eventually(lambda: metric(http, "trifocal:requests_queued") == 0)
    assert http.post(CHAT, json=SHORT).status_code == 200


def begin(server: Server, body: dict[str, Any], share: float = 1.0) -> socket.socket:
    """A connection that has sent `share` of a request."""
    content = json.dumps(body).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: t\r\nContent-Length: {len(content)}\r\n\r\n".encode()
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.sendall(head + content[: int(len(content) * share)])
    return connection


@contextmanager
def standing_still(server: Server) -> Iterator[None]:
    """An engine that makes no step while the block runs: whoever waits goes on waiting."""
    pid = engine_pid(server)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def status_of(connection: socket.socket) -> int:
    with connection:
        return int(connection.recv(1 << 16).split(b" ", 2)[1])


# ---------------------------------------------------------------------------------------------- bytes and times

BODY = 1_000_000


@pytest.fixture(scope="module")
def narrow(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with little room, little time and small counts."""
    flags = {
        "max-num-seqs": 1, "max-request-bytes": BODY, "max-media-bytes-in-flight": 1_500_000, "max-queued-tokens": 100,
        "body-timeout": 3, "queue-timeout": 3, "max-n": 3, "max-answers": 6, "max-stop-strings": 2, "max-logit-bias": 2,
        "max-stop-token-ids": 2, "max-logprobs": 2, "max-request-values": 1000, "max-bad-words": 2,
        "max-allowed-token-ids": 2,
        "h11-max-incomplete-event-size": 8000, "h11-max-header-count": 30,
    }  # fmt: skip
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    with running(checkpoint, tmp_path_factory.mktemp("narrow") / "server.log", *words) as server:
        yield server


@pytest.fixture
def tight(narrow: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=narrow.url, timeout=60) as client:
        assert eventually(lambda: idle(client))
        yield client
        assert eventually(lambda: idle(client)), client.get("/metrics").text
        assert eventually(lambda: shared_bytes(narrow) == 0)


def padded(size: int) -> dict[str, Any]:
    return {**SHORT, "user": "u" * (size - len(json.dumps({**SHORT, "user": ""})))}


def test_bodies_count_while_they_stream_in(narrow: Server, tight: httpx.Client) -> None:
    slow = begin(narrow, padded(BODY), share=0.9)
    assert eventually(lambda: metric(tight, "trifocal:media_bytes_in_flight") >= 0.9 * BODY)
    response = tight.post(CHAT, json=padded(BODY - 10_000))
    assert error_of(response, 503)["code"] == "overloaded" and "retry-after" in response.headers
    assert "--max-media-bytes-in-flight" in response.json()["error"]["message"]
    assert tight.post(CHAT, json=padded(BODY // 2)).status_code == 200  # there is room for this one
    slow.close()
    assert eventually(lambda: metric(tight, "trifocal:media_bytes_in_flight") == 0)
    assert tight.post(CHAT, json=padded(BODY - 10_000)).status_code == 200


def test_pixels_count_until_the_end(narrow: Server, tight: httpx.Client) -> None:
    body = {**LONG, "messages": ask(image_part(picture(448, 448)))}
    with tight.stream("POST", CHAT, json=body) as response, standing_still(narrow):
        assert response.status_code == 200
        assert metric(tight, "trifocal:media_bytes_in_flight") == shared_bytes(narrow) > 100_000


def test_a_body_that_does_not_come_is_a_408(narrow: Server, tight: httpx.Client) -> None:
    started = time.monotonic()
    assert status_of(begin(narrow, SHORT, share=0.5)) == 408
    assert 2 < time.monotonic() - started < 30


def test_waiting_too_long_is_a_504(narrow: Server, tight: httpx.Client) -> None:
    with standing_still(narrow):
        for stream in (False, True):
            error = error_of(tight.post(CHAT, json={**SHORT, "stream": stream}), 504)
            assert error["code"] == "timeout" and "--queue-timeout" in error["message"]


def test_queued_tokens(narrow: Server, tight: httpx.Client) -> None:
    """A request of many tokens is let in when nobody waits, and then keeps others out."""
    many = {"prompt": "word " * 200, "max_tokens": 1}
    with standing_still(narrow):
        waiting = begin(narrow, {**SHORT, "messages": [{"role": "user", "content": "word " * 200}]})
        assert eventually(lambda: metric(tight, "trifocal:tokens_queued") > 100)
        assert "--max-queued-tokens" in error_of(tight.post("/v1/completions", json=many), 503)["message"]
        waiting.close()
        assert eventually(lambda: metric(tight, "trifocal:tokens_queued") == 0)
    assert tight.post("/v1/completions", json=many).status_code == 200


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        (CHAT, {"n": 4}, "n"),
        (CHAT, {"stop": ["a", "b", "c"]}, "stop"),
        (CHAT, {"stop_token_ids": [1, 2, 3]}, "stop_token_ids"),
        (CHAT, {"logit_bias": {"1": 1, "2": 1, "3": 1}}, "logit_bias"),
        (CHAT, {"bad_words": ["a", "b", "c"]}, "bad_words"),
        (CHAT, {"allowed_token_ids": [1, 2, 3]}, "allowed_token_ids"),
        (CHAT, {"logprobs": True, "top_logprobs": 3}, "top_logprobs"),
        ("/v1/completions", {"prompt": ["a"] * 7}, "prompt"),
        ("/v1/completions", {"prompt": ["a"] * 3, "n": 3}, "prompt"),
    ],
    ids=str,
)
def test_counts(tight: httpx.Client, path: str, fields: dict[str, Any], param: str) -> None:
    body = {"model": MODEL, "max_tokens": 1, **({"messages": HELLO} if path == CHAT else {}), **fields}
    error = error_of(tight.post(path, json=body), 400)
    assert error["param"] == param and "--max-" in error["message"]


def test_as_much_as_is_allowed(tight: httpx.Client) -> None:
    fields = {"n": 3, "stop": ["zz", "yy"], "logit_bias": {"1": 1, "2": 1}, "stop_token_ids": [1, 2]}
    fields |= {"logprobs": True, "top_logprobs": 2, "user": "," * 900, "bad_words": ["zz", "y"]}
    fields |= {"allowed_token_ids": [70, 71]}
    assert tight.post(CHAT, json={**SHORT, **fields}).status_code == 200
    assert tight.post("/v1/completions", json={"prompt": ["a", "b"], "n": 3, "max_tokens": 1}).status_code == 200


@pytest.mark.parametrize("value", [[[]] * 500, [1] * 1000, [{"a": 1}] * 500, "," * 1000], ids=["lists", "1", "{}", ","])
def test_values_of_a_body(tight: httpx.Client, value: Any) -> None:
    """They are counted as they come in, not parsed: a list of empty lists would take twenty times its bytes."""
    error = error_of(tight.post(CHAT, json={**SHORT, "metadata": value}), 413)
    assert error["code"] == "request_too_large" and "--max-request-values 1000" in error["message"]


def test_headers(narrow: Server, tight: httpx.Client) -> None:
    assert (
        error_of(tight.get("/health", headers={f"x-{k}": "1" for k in range(40)}), 431)["code"] == "headers_too_large"
    )
    with socket.create_connection(("127.0.0.1", narrow.port)) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: t\r\nX-Long: " + b"x" * 20_000)
        head, _, body = all_of(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 431") and json.loads(body)["error"]["code"] == "headers_too_large"
    with socket.create_connection(("127.0.0.1", narrow.port)) as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        head, _, body = all_of(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400") and json.loads(body)["error"]["type"] == "invalid_request_error"
    assert tight.get("/health").status_code == 200


# ---------------------------------------------------------------------------------------------- the whole request


def test_a_request_that_takes_too_long(checkpoint: Path, tmp_path: Path) -> None:
    """504, or an error event where the stream has begun; the engine is told to forget it."""
    with (
        running(checkpoint, tmp_path / "log", "--request-timeout", "1") as server,
        httpx.Client(base_url=server.url, timeout=60) as http,
    ):
        body = {**LONG, "max_tokens": 3900}
        error = error_of(http.post(CHAT, json={**body, "stream": False, "n": 2}), 504)
        assert error["code"] == "timeout" and "--request-timeout" in error["message"]
        with http.stream("POST", CHAT, json=body) as response:
            events = [line.removeprefix("data: ") for line in response.iter_lines() if line]
        assert response.status_code == 200 and events[-1] != "[DONE]"
        assert json.loads(events[-1])["error"]["code"] == "timeout"
        assert eventually(lambda: idle(http))
        assert http.post(CHAT, json=SHORT).status_code == 200


def test_preprocessing_that_takes_too_long(checkpoint: Path, tmp_path: Path) -> None:
    with (
        running(checkpoint, tmp_path / "log", "--preprocessing-timeout", "0.001") as server,
        httpx.Client(base_url=server.url, timeout=60) as http,
    ):
        body = {**SHORT, "messages": ask(image_part(picture(4000, 3000)))}
        for path in (CHAT, "/tokenize"):
            error = error_of(http.post(path, json=body), 504)
            assert error["code"] == "timeout" and "--preprocessing-timeout" in error["message"]
        assert eventually(lambda: idle(http))
