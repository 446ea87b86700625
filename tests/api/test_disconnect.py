"""A client that hangs up frees what its request holds at once, whatever the request was doing."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.api.helpers import (
    HELLO,
    KEY,
    MODEL,
    Server,
    ask,
    eventually,
    holds_nothing,
    image_part,
    metric,
    picture,
    shared_bytes,
)

LONG = {"max_tokens": 650, "ignore_eos": True, "temperature": 0}


def request(server: Server, path: str, **fields: Any) -> socket.socket:
    """A connection that has sent a whole request and read nothing."""
    body = json.dumps({"model": MODEL, **fields}).encode()
    connection = socket.create_connection(("127.0.0.1", server.port))
    head = f"POST {path} HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


@pytest.fixture(autouse=True)
def nothing_is_left(server: Server, http: httpx.Client) -> Iterator[None]:
    """No sequence, KV block, pinned embedding or byte of shared memory outlives the test."""
    assert eventually(lambda: holds_nothing(http))
    yield
    assert eventually(lambda: holds_nothing(http)), http.get("/metrics").text
    assert eventually(lambda: shared_bytes(server) == 0)


def running(http: httpx.Client) -> float:
    return metric(http, "trifocal:num_requests_running")


@pytest.mark.parametrize("path, prompt", [("/v1/chat/completions", {"messages": HELLO}),
                                          ("/v1/completions", {"prompt": ["a fox", "a dog"]})])  # fmt: skip
@pytest.mark.parametrize("fields", [{"stream": True}, {"stream": False}, {"stream": True, "n": 2}], ids=str)
def test_hang_up_while_generating(
    server: Server, http: httpx.Client, path: str, prompt: dict[str, Any], fields: dict[str, Any]
) -> None:
    aborted = metric(http, "trifocal:request_success_total")
    generated = metric(http, "trifocal:generation_tokens_total")
    with request(server, path, **prompt, **LONG, **fields):
        assert eventually(lambda: running(http) > 0)
        assert metric(http, "trifocal:kv_blocks_used") > 0
    assert eventually(lambda: holds_nothing(http))
    assert metric(http, "trifocal:request_success_total") > aborted
    assert metric(http, "trifocal:generation_tokens_total") - generated < LONG["max_tokens"]


def test_closing_the_sdks_stream(client: openai.OpenAI, http: httpx.Client) -> None:
    stream = client.chat.completions.create(model=MODEL, messages=HELLO, stream=True, extra_body=LONG)  # type: ignore[call-overload]
    for _ in range(3):
        next(stream)
    generated = metric(http, "trifocal:generation_tokens_total")
    stream.close()
    assert eventually(lambda: holds_nothing(http))
    assert metric(http, "trifocal:generation_tokens_total") - generated < LONG["max_tokens"] / 2


def test_hang_up_while_waiting_in_the_queue(server: Server, http: httpx.Client) -> None:
    first = [request(server, "/v1/chat/completions", messages=HELLO, **LONG) for _ in range(4)]  # --max-num-seqs 4
    assert eventually(lambda: running(http) == 4)
    waiting = request(server, "/v1/chat/completions", messages=HELLO, **LONG)
    assert eventually(lambda: metric(http, "trifocal:num_requests_waiting") == 1)
    waiting.close()
    assert eventually(lambda: metric(http, "trifocal:num_requests_waiting") == 0)
    assert running(http) == 4
    for connection in first:
        connection.close()


def test_hang_up_while_pictures_are_preprocessed(server: Server, http: httpx.Client) -> None:
    pictures = [image_part(picture(3000, 2000, seed=seed)) for seed in range(4)]
    for delay in (0.0, 0.02, 0.1, 0.3):
        with request(server, "/v1/chat/completions", messages=ask(*pictures), **LONG):
            time.sleep(delay)


def test_hang_up_while_a_picture_is_in_use(server: Server, http: httpx.Client) -> None:
    with request(server, "/v1/chat/completions", messages=ask(image_part(picture())), **LONG):
        assert eventually(lambda: running(http) > 0)
        assert shared_bytes(server) > 0
    assert eventually(lambda: holds_nothing(http))


def test_hang_up_in_the_middle_of_the_body(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 999\r\n\r\n"
        connection.sendall(head.encode() + b'{"messages')


def test_many_at_once(server: Server, http: httpx.Client) -> None:
    """Half of the clients hang up; the others get what they would get alone."""
    body = {"model": MODEL, "messages": HELLO, "temperature": 0, "max_tokens": 40, "ignore_eos": True}
    alone = http.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
    impatient = [request(server, "/v1/chat/completions", messages=HELLO, **LONG, stream=i % 2 == 0) for i in range(6)]
    patient = [
        request(server, "/v1/chat/completions", **{k: v for k, v in body.items() if k != "model"}) for _ in range(6)
    ]
    for connection in impatient:
        connection.close()
    for connection in patient:
        with connection, connection.makefile("rb") as file:
            length = 0
            while (line := file.readline().strip()) != b"":
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            assert json.loads(file.read(length))["choices"][0]["message"]["content"] == alone
