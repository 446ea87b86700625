"""The evaluator against a small HTTP server that speaks the chat API."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tools.demo_model.backends import ServerBackend
from tools.demo_model.evaluate import accuracy_by_kind, evaluate
from tools.demo_model.items import Item, held_out_items
from tools.demo_model.media import decode_mp4

ANSWERS: dict[str, str] = {}
SEEN: list[dict[str, Any]] = []


class _Chat(BaseHTTPRequestHandler):
    """Answers a question by looking its text up in ANSWERS."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        SEEN.append(body)
        last = body["messages"][-1]["content"]
        text = last if isinstance(last, str) else next(part["text"] for part in last if part["type"] == "text")
        message = {"role": "assistant", "content": ANSWERS.get(text, "I do not know.")}
        reply = json.dumps({"choices": [{"message": message}]}).encode()
        self.send_response(200 if self.path == "/v1/chat/completions" else 404)
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def base_url() -> Iterator[str]:
    SEEN.clear()
    ANSWERS.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Chat)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1/"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_server_is_asked_with_data_urls_and_scored_by_kind(base_url: str) -> None:
    items = list(held_out_items(7, 1, ("shape", "several_images", "motion", "follow_up", "text_only")))
    for item in items:
        if item.kind != "motion":
            ANSWERS[item.question] = f" {item.answer}\n"
    outcomes = evaluate(ServerBackend(base_url, "demo", concurrency=2), items)
    assert accuracy_by_kind(outcomes) == {
        kind: (int(kind != "motion"), 1) for kind in ("shape", "several_images", "motion", "follow_up", "text_only")
    }
    assert all(body["temperature"] == 0 and body["model"] == "demo" for body in SEEN)
    assert sorted(len(body["messages"]) for body in SEEN) == [1, 1, 1, 1, 5]


def test_the_clip_in_a_message_decodes(base_url: str) -> None:
    (item,) = held_out_items(7, 1, ("motion",))
    (part,) = [part for part in item.messages()[0]["content"] if part["type"] == "video_url"]
    header, _, payload = part["video_url"]["url"].partition(",")
    assert header == "data:video/mp4;base64"
    frames, fps = decode_mp4(base64.b64decode(payload))
    assert fps == 10
    assert len(frames) in (20, 30, 40)


def test_the_question_can_come_first() -> None:
    item = Item("shape", "What is this?", "A star.", images=(b"png",), is_question_first=True)
    assert [part["type"] for part in item.messages()[0]["content"]] == ["text", "image_url"]
