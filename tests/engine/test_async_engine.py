"""The engine process behind `AsyncEngine`: streams, aborts, refusals, and what is left behind."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from tests import tiny
from tests.engine.processes import is_running, open_memory
from trifocal.config.engine import EngineArgs, EngineConfig, resolve
from trifocal.engine.async_engine import AsyncEngine
from trifocal.errors import ConfigError, EngineDeadError, RequestError
from trifocal.llm import LLM
from trifocal.prompt.builder import PromptBuilder
from trifocal.sampling_params import SamplingParams
from trifocal.types import Prompt

pytestmark = pytest.mark.asyncio(loop_scope="module")

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
LONG = GREEDY.replace(max_tokens=400)
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> EngineConfig:
    folder = tiny.write_checkpoint(tmp_path_factory.mktemp("tiny") / "model")
    return resolve(EngineArgs(model=str(folder), max_model_len=512))


@pytest.fixture(scope="module")
def builder(config: EngineConfig) -> PromptBuilder:
    return PromptBuilder(config)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(config: EngineConfig, builder: PromptBuilder) -> AsyncIterator[AsyncEngine]:
    engine = await AsyncEngine.start(config, lambda: builder.tokenizer)
    yield engine
    await engine.shutdown()


def picture_prompt(builder: PromptBuilder, seed: int = 0) -> Prompt:
    pixels = np.random.default_rng(seed).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    return builder.build(f"{IMAGE}What is in the image?", {"image": [pixels]})


async def text_of(engine: AsyncEngine, request_id: str, prompt: Prompt, params: SamplingParams = GREEDY) -> str:
    return "".join([delta.text async for delta in await engine.submit(request_id, prompt, params)])


async def becomes_clean(engine: AsyncEngine) -> bool:
    for _ in range(100):
        if (await engine.integrity()).is_clean:
            return True
        await asyncio.sleep(0.02)
    return False


async def test_answers_equal_offline_ones_and_nothing_is_left(
    config: EngineConfig, builder: PromptBuilder, engine: AsyncEngine
) -> None:
    prompts = [picture_prompt(builder, seed) for seed in range(3)] + [builder.build("The quick brown")]
    texts = await asyncio.gather(*(text_of(engine, str(i), prompt) for i, prompt in enumerate(prompts)))
    with LLM(config.model.spec.path, max_model_len=512) as llm:
        pixels = [np.random.default_rng(seed).integers(0, 256, (112, 112, 3), dtype=np.uint8) for seed in range(3)]
        inputs = [{"prompt": f"{IMAGE}What is in the image?", "multi_modal_data": {"image": each}} for each in pixels]
        offline = llm.generate([*inputs, "The quick brown"], GREEDY, use_tqdm=False)
    assert texts == [output.outputs[0].text for output in offline]
    assert len(set(texts)) == 4
    assert await becomes_clean(engine)


async def test_deltas_carry_all_tokens_once_and_the_usage(builder: PromptBuilder, engine: AsyncEngine) -> None:
    prompt = builder.build("The quick brown fox")
    deltas = [delta async for delta in await engine.submit("a", prompt, GREEDY.replace(logprobs=2))]
    assert sum(len(delta.token_ids) for delta in deltas) == 12
    assert len(deltas) > 3, "text comes in pieces"
    assert [delta.finish_reason for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
    assert deltas[-1].finish_reason == "length"
    assert deltas[-1].num_prompt_tokens == len(prompt.token_ids)
    for delta in deltas:
        assert delta.logprobs is not None
        assert [each.token_ids[0] for each in delta.logprobs] == delta.token_ids


async def test_closing_a_stream_frees_everything(builder: PromptBuilder, engine: AsyncEngine) -> None:
    streams = [await engine.submit(str(i), picture_prompt(builder, i), LONG) for i in range(4)]
    await anext(streams[0])
    held = await engine.integrity()
    assert held.num_requests == 4 and held.kv_blocks > 0 and held.shared_bytes > 0
    assert held.worker_sequences > 0 and held.mapped_media > 0
    for stream in streams:
        await stream.aclose()
        await stream.aclose()
    assert await becomes_clean(engine)


async def test_an_idle_engine_holds_nothing_of_the_last_request(builder: PromptBuilder, engine: AsyncEngine) -> None:
    """No other request comes: its state is gone from the workers all the same, and its pixels are unmapped."""
    stream = await engine.submit("last", picture_prompt(builder, 50), GREEDY)
    await anext(stream)
    held = await engine.integrity()
    assert (held.worker_sequences, held.mapped_media) == (1, 1)
    async for _ in stream:
        pass
    assert await becomes_clean(engine)
    assert engine.last_stats[0].worker_embeds == engine.last_stats[0].encoder_items > 0, (
        "embeddings are kept for the next"
    )
    assert engine.replicas[0].engine_pid is not None
    assert "trifocal-media" not in Path(f"/proc/{engine.replicas[0].engine_pid}/maps").read_text()


async def test_the_engine_hears_of_an_end_before_pixels_are_given_back(
    builder: PromptBuilder, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it could take the pixels of the next request for those of one that it has not looked at yet."""
    said: list[str] = []
    send, release = engine.replicas[0]._supervisor.send, engine._release
    monkeypatch.setattr(
        engine.replicas[0]._supervisor, "send", lambda word: [said.append(type(word).__name__), send(word)]
    )
    monkeypatch.setattr(engine, "_release", lambda users: [said.append("release"), release(users)])
    stream = await engine.submit("given up", picture_prompt(builder, 5), LONG)
    await stream.aclose()
    assert [word for word in said if word != "QueryStats"] == ["AddRequest", "AbortRequests", "release"]
    assert await becomes_clean(engine)


async def test_close_at_any_moment(builder: PromptBuilder, engine: AsyncEngine) -> None:
    """Cancel while pixels are being shared, before the first token, in the middle; neighbours are not disturbed."""
    expected = await text_of(engine, "first", picture_prompt(builder, 99))
    neighbour = asyncio.create_task(text_of(engine, "neighbour", picture_prompt(builder, 99)))
    for moment in range(25):
        task = asyncio.create_task(text_of(engine, f"cancelled-{moment}", picture_prompt(builder, moment), LONG))
        await asyncio.sleep(moment * 0.002)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert await neighbour == expected
    assert await becomes_clean(engine)


async def test_stop_string_ends_the_request_in_the_engine(builder: PromptBuilder, engine: AsyncEngine) -> None:
    prompt = builder.build("The quick brown fox")
    full = await text_of(engine, "full", prompt, LONG)
    stop = full[10:13]
    assert await text_of(engine, "stopped", prompt, LONG.replace(stop=stop)) == full[: full.index(stop)]
    assert await becomes_clean(engine)


async def test_refusals_name_the_field_and_disturb_nobody(builder: PromptBuilder, engine: AsyncEngine) -> None:
    prompt = builder.build("hello")
    with pytest.raises(RequestError, match="max_tokens=100000 cannot be greater than max_model_len") as caught:
        await engine.submit("long", prompt, GREEDY.replace(max_tokens=100_000))
    assert caught.value.param == "max_tokens"
    stream = await engine.submit("same", prompt, LONG)
    with pytest.raises(RequestError, match="in use"):
        await engine.submit("same", prompt, LONG)
    await stream.aclose()
    assert await becomes_clean(engine)


async def test_no_memory_for_pixels_is_a_503_and_leaves_nothing(
    builder: PromptBuilder, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`/dev/full` in its place: every write to it fails as on a full device."""
    monkeypatch.setattr(os, "memfd_create", lambda name: os.open("/dev/full", os.O_RDWR))
    with pytest.raises(RequestError, match="media could not be kept in memory: No space left on device") as caught:
        await engine.submit("full", picture_prompt(builder, 7), GREEDY)
    assert (caught.value.status, caught.value.code) == (503, "overloaded")
    monkeypatch.undo()
    assert await becomes_clean(engine)
    assert await text_of(engine, "room again", picture_prompt(builder, 7))
    assert await becomes_clean(engine)


async def test_shutdown_leaves_no_process_and_no_memory(config: EngineConfig, builder: PromptBuilder) -> None:
    before = open_memory()
    engine = await AsyncEngine.start(config, lambda: builder.tokenizer)
    stream = await engine.submit("a", picture_prompt(builder), LONG)
    pid = engine.replicas[0].engine_pid
    assert open_memory() > before
    await engine.shutdown()
    await engine.shutdown()
    assert not is_running(pid)
    assert open_memory() == before
    with pytest.raises(EngineDeadError, match="shutting down"):
        async for _ in stream:
            pass


@pytest.mark.slow  # test_wrong_folders asks the command, which asks this
async def test_a_broken_checkpoint_is_a_config_error(tmp_path: Path, builder: PromptBuilder) -> None:
    folder = tiny.write_checkpoint(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match="model.safetensors"):
        await AsyncEngine.start(resolve(EngineArgs(model=str(folder))), lambda: builder.tokenizer)
