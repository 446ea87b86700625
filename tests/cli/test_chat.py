"""`trifocal chat`: a scripted conversation with a real server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from trifocal.cli import main
from trifocal.cli.chat import Conversation
from trifocal.cli.client import ServerError
from trifocal.demo.run import SAMPLES


class FakeClient:
    """Answers every message with its number; fails or is interrupted on demand."""

    def __init__(self) -> None:
        self.asked: list[list[dict[str, Any]]] = []
        self.trouble: BaseException | None = None

    def stream_chat(self, model: str, messages: list[dict[str, Any]], **fields: Any) -> Iterator[str]:
        self.asked.append(messages)
        yield f"answer {len(self.asked)}"
        if self.trouble:
            raise self.trouble


@pytest.fixture
def client() -> FakeClient:
    return FakeClient()


@pytest.fixture
def conversation(client: FakeClient) -> Conversation:
    return Conversation(client, "model", "be kind", {})  # type: ignore[arg-type]


def test_history_and_media_travel_with_the_question(client: FakeClient, conversation: Conversation) -> None:
    conversation.attach("image", str(SAMPLES / "circle.png"))
    conversation.ask("What?")
    conversation.ask("And now?")
    assert [message["role"] for message in client.asked[1]] == ["system", "user", "assistant", "user"]
    first, last = client.asked[1][1]["content"], client.asked[1][3]["content"]
    assert [part["type"] for part in first] == ["image_url", "text"] and last == "And now?"
    conversation.reset()
    assert conversation.messages == [{"role": "system", "content": "be kind"}]


def test_a_failed_question_is_not_remembered_and_keeps_its_media(
    client: FakeClient, conversation: Conversation
) -> None:
    conversation.attach("image", f"'{SAMPLES / 'circle.png'}'")
    client.trouble = ServerError("gone")
    with pytest.raises(ServerError):
        conversation.ask("What?")
    assert len(conversation.messages) == 1 and len(conversation.pending) == 1


def test_ctrl_c_cuts_the_answer_short(client: FakeClient, conversation: Conversation) -> None:
    client.trouble = KeyboardInterrupt()
    conversation.ask("What?")
    assert conversation.messages[-1] == {"role": "assistant", "content": "answer 1"}


def test_a_session(demo_server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = iter([
        "", "/help", "/image nothing.png", f"/video {SAMPLES / 'circle.png'}", f"/image {SAMPLES / 'circle.png'}",
        "What is this?", "/reset", "Hello", "/quit",
    ])  # fmt: skip
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    assert main(["chat", "--url", demo_server, "--max-tokens", "4", "--temperature", "0"]) == 0
    output = capsys.readouterr().out
    assert "trifocal-demo at" in output and "(1 attached; now ask)" in output
    assert "error: cannot read nothing.png" in output and "is not a video" in output
    assert next(lines, "all read") == "all read"


def test_ctrl_d_ends(demo_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def end(prompt: str) -> str:
        raise EOFError

    monkeypatch.setattr("builtins.input", end)
    assert main(["chat", "--url", demo_server]) == 0


def test_no_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "--url", "http://127.0.0.1:9"]) == 2
    assert "no server at" in capsys.readouterr().err
