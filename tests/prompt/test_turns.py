"""Threads are shared fairly: text never waits for pictures, and no request takes all threads that decode."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import tiny
from trifocal.config.engine import EngineArgs, resolve
from trifocal.prompt.builder import PromptBuilder

THREADS = 3


@pytest.fixture
def builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PromptBuilder]:
    monkeypatch.setenv("TRIFOCAL_MEDIA_LOADING_THREAD_COUNT", str(THREADS))
    made = PromptBuilder(resolve(EngineArgs(model=str(tiny.write_checkpoint(tmp_path)))))
    yield made
    made.close()


async def test_text_does_not_wait_for_media(builder: PromptBuilder) -> None:
    done = threading.Event()
    others = [asyncio.create_task(builder._run_media([done.wait] * 20)) for _ in range(5)]
    await asyncio.sleep(0.05)
    try:
        async with asyncio.timeout(30):
            prompt = await builder.chat([{"role": "user", "content": "Hello"}])
            assert (await builder.completion("Hello")).token_ids
    finally:
        done.set()
    assert prompt.token_ids
    await asyncio.gather(*others)


async def test_one_request_leaves_a_thread_to_others(builder: PromptBuilder) -> None:
    done, lock, num_running = threading.Event(), threading.Lock(), 0

    def hold() -> None:
        nonlocal num_running
        with lock:
            num_running += 1
        done.wait()

    greedy = asyncio.create_task(builder._run_media([hold] * 50))
    while num_running < THREADS - 1:
        await asyncio.sleep(0.01)
    try:
        async with asyncio.timeout(30):
            assert await builder._run_media([lambda: "another's picture"]) == ["another's picture"]
        assert num_running == THREADS - 1
    finally:
        done.set()
    assert len(await greedy) == 50
