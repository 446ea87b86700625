"""What the server writes and answers: one line a request with its id, and nothing that is nobody's business."""

from __future__ import annotations

import json
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.datastructures import Headers

from tests.api.helpers import (
    HELLO,
    KEY,
    MODEL,
    ROOT,
    Server,
    all_of,
    ask,
    clip,
    data_url,
    eventually,
    image_part,
    picture,
    running,
    video_part,
)
from trifocal.api.openai.errors import error_form
from trifocal.config.server import ServerArgs
from trifocal.http.access_log import AccessLog
from trifocal.http.context import RequestContext

CHAT = "/v1/chat/completions"
SECRET = "Zauberwort"  # in prompts, pictures and keys; in no answer that refuses and in no line
ADDRESS = re.compile(r"0x[0-9a-fA-F]{6,}")
PATH = re.compile(r"(?<![\w.:/<-])/[\w.~+@-]+(?:/[\w.~+@-]+)+")
OUR_PATHS = ("/v1/", "/health/x")
JPEG = picture(kind="JPEG")


@pytest.fixture(scope="module")
def talkative(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server at INFO with the access log as JSON, whose checkpoint and media lie where nobody should know."""
    folder = tmp_path_factory.mktemp(f"{SECRET}-media")
    log = tmp_path_factory.mktemp("talkative") / "server.log"
    flags = ("--access-log", "json", "--allowed-local-media-path", str(folder), "--max-model-len", "1024")
    with running(checkpoint, log, *flags, env={"TRIFOCAL_LOGGING_LEVEL": "info"}) as server:
        yield server


@pytest.fixture
def http(talkative: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=talkative.url, timeout=60) as client:
        yield client


def accesses(server: Server) -> list[dict[str, Any]]:
    return [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith("{")]


def access(server: Server, request_id: str) -> dict[str, Any]:
    assert eventually(lambda: any(line["id"] == request_id for line in accesses(server)))
    [line] = [line for line in accesses(server) if line["id"] == request_id]
    return line


# ---------------------------------------------------------------------------------------------- the access log


def test_an_answer_has_a_line(talkative: Server, http: httpx.Client) -> None:
    body = {"messages": ask(image_part(JPEG)), "max_tokens": 5, "ignore_eos": True}
    response = http.post(CHAT, json=body, headers={"x-request-id": "one-answer"})
    assert response.headers["x-request-id"] == "one-answer" and "one-answer" in response.json()["id"]
    line = access(talkative, "one-answer")
    assert (line["method"], line["path"], line["status"]) == ("POST", CHAT, 200)
    assert line["bytes_in"] == int(response.request.headers["content-length"])
    assert line["bytes_out"] == len(response.content)
    usage = response.json()["usage"]
    assert (line["prompt_tokens"], line["output_tokens"]) == (usage["prompt_tokens"], 5)
    assert 0 < line["first_token_s"] <= line["seconds"]
    assert line["media_bytes"] == len(JPEG)
    assert all(line[f"{step}_s"] >= 0 for step in ("fetch", "decode", "process"))
    assert re.fullmatch(r"127\.0\.0\.1:\d+", line["client"]) and line["time"].endswith("+00:00")


def test_refusals_streams_and_hang_ups_have_one_too(talkative: Server, http: httpx.Client) -> None:
    refused = http.post(CHAT, json={"messages": HELLO, "temperature": -1})
    line = access(talkative, refused.headers["x-request-id"])
    assert (line["status"], line["error"]) == (400, "invalid_value") and "output_tokens" not in line
    body = {"messages": HELLO, "max_tokens": 3, "ignore_eos": True, "stream": True}
    streamed = http.post(CHAT, json=body, headers={"x-request-id": "a-stream"})
    line = access(talkative, "a-stream")
    assert (line["status"], line["output_tokens"], line["bytes_out"]) == (200, 3, len(streamed.content))
    long = {**body, "max_tokens": 700}
    with http.stream("POST", CHAT, json=long, headers={"x-request-id": "hangs-up"}) as response:
        next(response.iter_lines())
    assert access(talkative, "hangs-up")["error"] == "client_closed"


def test_probes_have_none_unless_they_fail(talkative: Server, http: httpx.Client) -> None:
    for path in ("/health", "/live", "/ready", "/ping", "/metrics"):
        assert http.get(path, headers={"x-request-id": "a-probe"}).status_code == 200
    assert http.get("/health/x", headers={"x-request-id": "no-probe"}).status_code == 404
    assert access(talkative, "no-probe")["path"] == "/health/x"
    assert not [line for line in accesses(talkative) if line["id"] == "a-probe"]


def test_a_path_cannot_forge_a_line(talkative: Server, http: httpx.Client) -> None:
    http.get("/v1/models/a%0Ab%22%1b[31m" + "x" * 500, headers={"x-request-id": "forger"})
    line = access(talkative, "forger")
    assert line["path"].startswith("/v1/models/a%0Ab%22%1B%5B31m") and len(line["path"]) <= 128


def test_the_text_form(server: Server) -> None:
    httpx.get(f"{server.url}/v1/models", headers={"x-request-id": "in-text", "Authorization": f"Bearer {KEY}"})
    assert eventually(lambda: " id=in-text " in server.log.read_text())
    [line] = [line for line in server.log.read_text().splitlines() if "id=in-text" in line]
    assert re.match(r"time=\S+ id=in-text client=\S+ method=GET path=/v1/models status=200 seconds=[\d.]+ ", line)


@pytest.mark.slow  # test_what_flags_leave_out has the rest
def test_no_lines(checkpoint: Path, tmp_path: Path) -> None:
    with running(checkpoint, tmp_path / "log", "--disable-uvicorn-access-log") as server:
        httpx.get(f"{server.url}/v1/models")
    assert "method=" not in server.log.read_text()


@pytest.mark.parametrize(
    ("flags", "written"),
    [
        ({}, ["/a 200", "/a 404", "/health 404"]),
        ({"disable_access_log_for_endpoints": "/a, /b"}, ["/a 404", "/health 200", "/health 404"]),
        ({"uvicorn_log_level": "warning"}, []),
        ({"access_log": "none"}, []),
    ],
    ids=str,
)
def test_what_flags_leave_out(
    flags: dict[str, Any], written: list[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = AccessLog(ServerArgs(**flags))
    monkeypatch.setattr(log._logger, "handlers", [caplog.handler])
    caplog.set_level("INFO", "trifocal.access")
    for path in ("/a", "/health"):
        for status in (200, 404):
            log(RequestContext("id", "GET", path, "c:1", Headers(), error_form, route=path, status=status))
    assert [" ".join(re.findall(r"path=(\S+) status=(\d+)", line)[0]) for line in caplog.messages] == written


# ---------------------------------------------------------------------------------------------- secrets


def odd_requests() -> Iterator[tuple[str, Any]]:
    """What clients send by mistake or on purpose, each with a secret in it."""
    said = [{"role": "user", "content": f"my {SECRET} is {SECRET}"}]
    hidden = JPEG[:20] + SECRET.encode() + JPEG[20:]
    yield CHAT, {"messages": said, "max_tokens": 8}
    yield CHAT, {"messages": said, "max_tokens": 8, "stream": True, "n": 2, "logprobs": True}
    yield CHAT, {"messages": said, "max_tokens": 100_000}
    yield CHAT, {"messages": [{"role": "user", "content": f"{SECRET} " * 4000}]}
    yield CHAT, {"messages": f"{SECRET} as a string"}
    yield CHAT, {"messages": [f"{SECRET} as a string"]}
    yield CHAT, {"messages": [{"role": "user", "content": {"text": SECRET}}]}
    yield CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": [SECRET]}]}]}
    yield CHAT, {"messages": said, "stop": [[SECRET]]}
    yield CHAT, {"messages": said, "temperature": {SECRET: 1}}
    yield CHAT, {"messages": said, "chat_template_kwargs": SECRET}
    yield CHAT, {"messages": said, "mm_processor_kwargs": {"max_pixels": [1]}}
    yield CHAT, {"messages": said, "tools": [{"type": "function", "function": {"name": SECRET}}]}
    yield CHAT, {"messages": said, "cache_salt": [SECRET]}
    yield CHAT, {"messages": ask(image_part(hidden))}
    yield CHAT, {"messages": ask(image_part(JPEG[: len(JPEG) // 2] + SECRET.encode()))}
    yield CHAT, {"messages": ask(image_part(SECRET.encode() * 100))}
    yield CHAT, {"messages": ask(video_part(clip()[:900] + SECRET.encode()))}
    yield CHAT, {"messages": ask(video_part(JPEG))}
    yield CHAT, {"messages": ask({"type": "image_url", "image_url": {"url": data_url(JPEG) + "%%" + SECRET}})}
    yield CHAT, {"messages": ask({"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/picture.png"}})}
    yield CHAT, {"messages": ask({"type": "image_url", "image_url": {"url": "file:///proc/self/environ"}})}
    yield CHAT, {"messages": ask({"type": "image_url", "image_url": {"url": "file:///nowhere.png"}})}
    yield CHAT, {"messages": ask({"type": "image_url", "image_url": {"url": {"a": SECRET}}})}
    yield "/v1/completions", {"prompt": {"text": SECRET}}
    yield "/v1/completions", {"prompt": [SECRET, 1]}
    yield "/v1/completions", {"prompt": SECRET, "echo": 5}
    yield "/tokenize", {"prompt": [SECRET]}
    yield "/detokenize", {"tokens": SECRET}
    yield "/v1/embeddings", {"input": SECRET}
    yield CHAT, f'{{"messages": "{SECRET}'
    yield CHAT, f'["{SECRET}"]'
    yield CHAT, f'"{SECRET}"'


def test_no_secret_in_lines_or_errors(talkative: Server, http: httpx.Client, checkpoint: Path) -> None:
    outputs, errors = [], []
    for path, body in odd_requests():
        content = body if isinstance(body, str) else json.dumps(body)
        response = http.post(path, content=content, headers={"Authorization": f"Bearer {SECRET}"})
        assert response.headers["x-request-id"]
        if response.status_code == 200:
            outputs.append(response.text)
        else:
            assert response.status_code < 500, response.text
            errors.append(response.text)
    with socket.create_connection(("127.0.0.1", talkative.port)) as connection:
        connection.sendall(f"GET / HTTP/1.1\r\n{SECRET} without a colon\r\n\r\n".encode())
        errors.append(all_of(connection).decode())
    http.get("/v1/models", params={"query": SECRET})
    assert len(outputs) >= 2 and len(errors) >= 25
    lines = talkative.log.read_text().splitlines()
    assert len(lines) > 35
    private = [SECRET, str(checkpoint), str(ROOT), sys.prefix, "memfd", "/dev/shm", "Traceback"]
    for text in errors + lines:
        assert not [word for word in private if word in text], text
        assert not ADDRESS.search(text), text
        shown = [path for path in PATH.findall(text) if not path.startswith(OUR_PATHS)]
        assert shown in ([], ["/proc/self/environ"]), text  # which the client wrote itself
    words = {
        choice["message"]["content"]
        for text in outputs
        if text.startswith("{")
        for choice in json.loads(text)["choices"]
    }
    assert words and not [word for word in words if len(word) > 6 and word in talkative.log.read_text()]
    assert MODEL in talkative.log.read_text() or lines
