"""One real server for all tests of this folder: the command users type, a tiny checkpoint, the `openai` client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from tests import tiny
from tests.api.helpers import KEY, MAX_BYTES, Server, launch


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def media_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("media")


@pytest.fixture(scope="session")
def server(checkpoint: Path, media_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = launch(
        checkpoint, tmp_path_factory.mktemp("log") / "server.log",
        "--api-key", KEY, "--max-num-seqs", "4", "--max-request-bytes", str(MAX_BYTES), "--max-model-len", "1024",
        "--allowed-local-media-path", str(media_folder), "--limit-mm-per-prompt", '{"image": 9, "video": 1}',
    )  # fmt: skip
    try:
        running.wait_ready()
        yield running
    finally:
        status = running.stop()
    assert status == 0, running.log.read_text()


@pytest.fixture(scope="session")
def http(server: Server) -> Iterator[httpx.Client]:
    """A plain client that brings the key."""
    with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as client:
        yield client


@pytest.fixture(scope="session")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, timeout=60) as sdk:
        yield sdk
