"""Flags that change what the server answers or where it listens: a server with all of them, on a Unix socket."""

from __future__ import annotations

import json
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.helpers import HELLO, MODEL, eventually, image_part, launch, picture
from trifocal.config.server import ServerArgs
from trifocal.errors import ConfigError
from trifocal.http.context import IGNORED_HEADER as HEADER
from trifocal.http.listen import announce, bind
from trifocal.log import discreet

TEMPLATE = "{% for m in messages %}{{ style }}{{ m.content }}{% endfor %}"


@pytest.fixture(scope="module")
def started(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx.Client, Path]]:
    """A client and the server's log."""
    folder = tmp_path_factory.mktemp("options")
    path, log = folder / "socket", folder / "log"
    server = launch(
        checkpoint, log, "--uds", str(path), "--root-path", "/llm", "--response-role", "helper", "--api-key", "k",
        "--enable-force-include-usage", "--enable-log-outputs", "--chat-template", TEMPLATE,
        "--chat-template-content-format", "string", "--default-chat-template-kwargs.style", "plain",
        "--max-model-len", "256", "--disable-access-log-for-endpoints", "",
    )  # fmt: skip
    transport = httpx.HTTPTransport(uds=str(path))
    headers = {"Authorization": "Bearer k"}
    with httpx.Client(base_url="http://any/llm", transport=transport, headers=headers, timeout=60) as http:

        def is_ready() -> bool:
            assert server.process.poll() is None, log.read_text()
            return "ready: unix:" in log.read_text()

        try:
            assert eventually(is_ready, 240.0), log.read_text()
            yield http, log
        finally:
            status = server.stop()
    assert status == 0, log.read_text()
    assert not path.exists()


def test_it_listens_at_the_path_alone(started: tuple[httpx.Client, Path]) -> None:
    log = started[1].read_text()
    assert "ready: unix:" in log and "there is no --api-key" not in log


def test_both_with_the_proxys_path_and_without(started: tuple[httpx.Client, Path]) -> None:
    http, _ = started
    for prefix in ("http://any", "http://any/llm"):
        assert http.get(f"{prefix}/v1/models").json()["data"][0]["id"] == MODEL
        assert http.get(f"{prefix}/health", headers={"Authorization": ""}).status_code == 200
        assert http.get(f"{prefix}/v1/models", headers={"Authorization": ""}).status_code == 401
    assert http.get("http://any/other/v1/models").status_code == 404
    assert http.get("/openapi.json").json()["servers"] == [{"url": "/llm"}]


def test_answers_have_the_role(started: tuple[httpx.Client, Path]) -> None:
    http, _ = started
    body: dict[str, Any] = {"messages": HELLO, "max_tokens": 3, "ignore_eos": True}
    whole = http.post("/v1/chat/completions", json=body).json()
    assert whole["choices"][0]["message"]["role"] == "helper"
    text = http.post("/v1/chat/completions", json={**body, "stream": True}).text
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    assert events[0]["choices"][0]["delta"]["role"] == "helper"
    assert events[-1]["choices"] == [] and events[-1]["usage"]["completion_tokens"] == 3
    assert all(event["usage"] is None for event in events[:-1])


def test_every_stream_of_completions_ends_with_usage(started: tuple[httpx.Client, Path]) -> None:
    body = {"prompt": "a", "max_tokens": 2, "stream": True, "ignore_eos": True}
    text = started[0].post("/v1/completions", json=body).text
    last = [line for line in text.splitlines() if line.startswith("data: {")][-1]
    assert json.loads(last[6:])["usage"]["completion_tokens"] == 2


def test_usage_that_is_forced_runs_where_that_is_asked_for(started: tuple[httpx.Client, Path]) -> None:
    body = {"messages": HELLO, "max_tokens": 2, "stream": True, "ignore_eos": True}
    for wanted in (None, False):
        options = {"continuous_usage_stats": True, "include_usage": wanted}
        answer = started[0].post("/v1/chat/completions", json={**body, "stream_options": options})
        events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
        counts = [event["usage"]["completion_tokens"] for event in events]  # one event may bring two tokens
        assert counts[0] == 0 and counts == sorted(counts) and counts[-2:] == [2, 2]
        assert HEADER not in answer.headers


def test_outputs_are_logged_whole_and_streamed(started: tuple[httpx.Client, Path]) -> None:
    http, log = started
    for stream in (False, True):
        body = {"messages": HELLO, "max_tokens": 8, "ignore_eos": True, "stream": stream, "n": 2, "temperature": 0}
        http.post("/v1/chat/completions", json=body, headers={"x-request-id": f"logged-{stream}"})
    body = {"messages": HELLO, "max_tokens": 8, "ignore_eos": True, "temperature": 0}
    text = http.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
    lines = [line for line in log.read_text().split("\n") if "finish_reason length: " in line]
    for stream in (False, True):
        found = [line for line in lines if f"[logged-{stream}]" in line]
        assert (
            len(found) == 2 and [f"output {index}," in line for index, line in enumerate(sorted(found))] == [True] * 2
        )
        assert all(line.endswith(f": {discreet(repr(text))}") for line in found)


def test_the_template_gets_defaults_and_strings(started: tuple[httpx.Client, Path]) -> None:
    http, _ = started

    def prompt(**fields: Any) -> str:
        ids = http.post("/tokenize", json={"messages": HELLO, **fields}).json()["tokens"]
        return str(http.post("/detokenize", json={"tokens": ids}).json()["prompt"])

    assert prompt() == "plainHello, how are you?"
    assert prompt(chat_template_kwargs={"style": "bold"}) == "boldHello, how are you?"
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert prompt(messages=parts) == "plaina\nb"


def test_a_leftover_socket_is_replaced_one_in_use_is_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "socket"
    args = ServerArgs(uds=str(path))
    bind(args).close()  # as a server that was killed leaves it
    with bind(args) as listener:
        listener.listen()
        announce(listener, args)
        assert stat.S_ISSOCK(path.stat().st_mode)
        with pytest.raises(ConfigError, match="cannot listen on --uds"):
            bind(args)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.connect(str(path))
    assert "there is no --api-key" not in caplog.text
    (tmp_path / "file").write_text("mine")
    for wrong in (tmp_path / "file", tmp_path / "no" / "folder", tmp_path / ("x" * 200)):
        with pytest.raises(ConfigError, match="cannot listen on --uds"):
            bind(ServerArgs(uds=str(wrong)))
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"response_role": ""}, "--response-role is empty"),
        ({"root_path": "llm"}, "--root-path must begin with a slash and end without one"),
        ({"root_path": "/llm/"}, "--root-path must begin with a slash and end without one"),
        (
            {"chat_template_content_format": "list"},
            "--chat-template-content-format must be one of auto, string, openai",
        ),
        ({"default_chat_template_kwargs": [1]}, "default_chat_template_kwargs must be a dict"),
    ],
)
def test_values_that_cannot_be(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ServerArgs(**flags)


def test_pictures_still_find_their_way(started: tuple[httpx.Client, Path]) -> None:
    parts = [{"role": "user", "content": [image_part(picture()), {"type": "text", "text": "What?"}]}]
    answer = started[0].post("/v1/chat/completions", json={"messages": parts, "max_tokens": 2})
    assert answer.status_code == 200, answer.text
