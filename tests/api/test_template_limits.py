"""A chat template that spins on some messages: their sender gets a clear 400, everybody else an answer."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.api.helpers import MODEL, launch

TEMPLATE = (
    "{% if 'spin' in messages[0].content %}{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}"
    "{% endfor %}{% endif %}{{ messages[0].content }}"
)


@pytest.fixture(scope="module")
def url(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    running = launch(checkpoint, tmp_path_factory.mktemp("log") / "server.log", "--chat-template", TEMPLATE)
    try:
        running.wait_ready()
        yield running.url
    finally:
        status = running.stop()
    assert status == 0, running.log.read_text()


def ask(url: str, text: str) -> httpx.Response:
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 2}
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120)


def test_many_that_spin_delay_nobody_else(url: str) -> None:
    """There are fewer threads for text than templates that spin, and each may take three seconds of computing."""
    with ThreadPoolExecutor(5) as pool:
        spinning = [pool.submit(ask, url, "spin") for _ in range(5)]
        answers = [ask(url, "hello") for _ in range(3)]
        num_waiting = sum(not each.done() for each in spinning)
        assert [answer.status_code for answer in answers] == [200, 200, 200]
        assert num_waiting >= 4, "they were done one after the other before anybody was answered"
        assert {each.result().status_code for each in spinning} == {400}


def test_the_limit_is_a_clear_error_and_nobody_waits(url: str) -> None:
    with ThreadPoolExecutor(1) as pool:
        spinning = pool.submit(ask, url, "spin")
        answers = [ask(url, "hello") for _ in range(3)]
        assert httpx.get(f"{url}/health", timeout=60).status_code == 200
        assert not spinning.done(), "the others were answered while the template span"
        refused = spinning.result()
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert "chat template was stopped" in error["message"] and error["param"] == "messages"
    assert ask(url, "hello").status_code == 200
