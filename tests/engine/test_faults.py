"""The engine process dies or hangs: it is replaced, and every stream goes on as if nothing had happened."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from tests import tiny
from tests.engine.processes import is_gone_soon, is_running, open_memory
from trifocal.config.engine import EngineArgs, EngineConfig, resolve
from trifocal.config.supervision import SupervisionConfig
from trifocal.engine.async_engine import AsyncEngine
from trifocal.errors import ConfigError, EngineDeadError, RequestError
from trifocal.prompt.builder import PromptBuilder
from trifocal.sampling_params import SamplingParams
from trifocal.types import Delta, Prompt

pytestmark = pytest.mark.asyncio(loop_scope="module")

GREEDY = SamplingParams(temperature=0, max_tokens=150, ignore_eos=True)
SEEDED = SamplingParams(temperature=1.0, seed=7, max_tokens=150, ignore_eos=True)
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
EVERY_KIND = {
    "greedy": GREEDY,
    "seeded": SEEDED.replace(top_p=0.9, top_k=40),
    "choices": SEEDED.replace(n=3),
    "penalties": GREEDY.replace(frequency_penalty=0.7, presence_penalty=0.3, repetition_penalty=1.2),
    "logprobs": GREEDY.replace(logprobs=2),
    "short": GREEDY.replace(max_tokens=3),
}


@pytest.fixture(scope="module")
def config(folder: Path) -> EngineConfig:
    return resolve(EngineArgs(model=str(folder), dtype="float32", max_model_len=512))


@pytest.fixture(scope="module")
def builder(config: EngineConfig) -> PromptBuilder:
    return PromptBuilder(config)


Start = Callable[..., Awaitable[AsyncEngine]]


@pytest_asyncio.fixture(loop_scope="module")
async def start(config: EngineConfig, builder: PromptBuilder) -> AsyncIterator[Start]:
    """Engines of a test's own, for environments of its own."""
    started: list[AsyncEngine] = []

    async def begin(config: EngineConfig = config) -> AsyncEngine:
        config = replace(config, supervision=SupervisionConfig())  # as the environment of now says
        started.append(await AsyncEngine.start(config, lambda: builder.tokenizer))
        return started[-1]

    yield begin
    for engine in started:
        pid = engine.replicas[0].engine_pid
        await engine.shutdown()
        assert not is_running(pid)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(config: EngineConfig, builder: PromptBuilder) -> AsyncIterator[AsyncEngine]:
    """One that many tests share, and survives them all."""
    before = open_memory()
    engine = await AsyncEngine.start(config, lambda: builder.tokenizer)
    yield engine
    assert await becomes_clean(engine)
    await engine.shutdown()
    assert open_memory() == before


def prompts(builder: PromptBuilder) -> dict[str, Prompt]:
    """One for each kind; half of them with a picture, two with the same."""

    def picture(seed: int) -> np.ndarray:
        return np.random.default_rng(seed).integers(0, 256, (112, 112, 3), dtype=np.uint8)

    return {
        kind: builder.build(f"{IMAGE}What is in it?", {"image": [picture(index // 4)]})
        if index % 2 == 0
        else builder.build(f"The quick brown {kind}")
        for index, kind in enumerate(EVERY_KIND)
    }


Answer = list[tuple[str, list[int], str | None, int | str | None]]


def whole(deltas: list[Delta], n: int) -> Answer:
    """Text, tokens and end of each choice; whatever is missing, doubled or out of order shows."""
    answer: Answer = []
    for index in range(n):
        own = [delta for delta in deltas if delta.index == index]
        token_ids = [token_id for delta in own for token_id in delta.token_ids]
        assert [delta.finish_reason for delta in own[:-1]] == [None] * (len(own) - 1)
        answer.append(("".join(delta.text for delta in own), token_ids, own[-1].finish_reason, own[-1].stop_reason))
    return answer


async def answer_of(engine: AsyncEngine, request_id: str, prompt: Prompt, params: SamplingParams) -> Answer:
    return whole([delta async for delta in await engine.submit(request_id, prompt, params)], params.n)


async def all_answers(engine: AsyncEngine, builder: PromptBuilder, prefix: str) -> dict[str, Answer]:
    asked = prompts(builder)
    answers = await asyncio.gather(
        *(answer_of(engine, f"{prefix}-{kind}", asked[kind], params) for kind, params in EVERY_KIND.items())
    )
    return dict(zip(EVERY_KIND, answers, strict=True))


async def becomes_clean(engine: AsyncEngine) -> bool:
    return await eventually(lambda: _is_clean(engine))


async def _is_clean(engine: AsyncEngine) -> bool:
    return (await engine.integrity()).is_clean


async def eventually(holds: Callable[[], Awaitable[bool]], timeout_s: float = 240.0) -> bool:
    try:
        async with asyncio.timeout(timeout_s):
            while not await holds():
                await asyncio.sleep(0.01)
    except TimeoutError:
        return False
    return True


async def until_computing(engine: AsyncEngine, num_tokens: int = 0) -> None:
    """The engine has generated so many tokens, of whichever request, and still works."""

    async def computes() -> bool:
        stats = engine.last_stats[0]
        return engine.is_ready and stats.num_running > 0 and stats.num_generation_tokens >= num_tokens

    assert await eventually(computes)


async def until_ready(engine: AsyncEngine) -> None:
    async def is_ready() -> bool:
        return engine.is_ready

    assert await eventually(is_ready)


def kill(engine: AsyncEngine, number: signal.Signals = signal.SIGKILL) -> None:
    assert engine.replicas[0].engine_pid is not None
    os.kill(engine.replicas[0].engine_pid, number)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def undisturbed(engine: AsyncEngine, builder: PromptBuilder) -> dict[str, Answer]:
    """What everybody gets if nothing happens."""
    answers = await all_answers(engine, builder, "undisturbed")
    assert len(answers["greedy"][0][1]) == 150
    assert len({text for text, *_ in answers["choices"]}) == 3
    return answers


async def test_streams_outlive_three_engines(
    engine: AsyncEngine, builder: PromptBuilder, undisturbed: dict[str, Answer]
) -> None:
    """Killed while all are decoding, again as soon as the next one computes, and by its own fault (SIGSEGV)."""
    before = engine.last_stats[0].num_restarts
    asking = asyncio.create_task(all_answers(engine, builder, "killed"))
    for num_tokens, number in ((100, signal.SIGKILL), (0, signal.SIGKILL), (30, signal.SIGSEGV)):
        await until_computing(engine, num_tokens)
        kill(engine, number)
        await eventually(lambda: _is_down(engine))
    assert await asking == undisturbed
    assert engine.last_stats[0].num_restarts == before + 3
    assert engine.last_stats[0].num_replays > 3
    assert await becomes_clean(engine)


async def _is_down(engine: AsyncEngine) -> bool:
    return not engine.is_ready


async def test_killed_again_while_it_starts(
    engine: AsyncEngine, builder: PromptBuilder, undisturbed: dict[str, Answer]
) -> None:
    asking = asyncio.create_task(all_answers(engine, builder, "starting"))
    await until_computing(engine)
    first = engine.replicas[0].engine_pid
    kill(engine)

    async def is_another() -> bool:
        return engine.replicas[0].engine_pid not in (None, first)

    assert await eventually(is_another)
    assert not engine.is_ready
    kill(engine)
    assert await asking == undisturbed


async def test_a_picture_is_being_encoded_when_it_dies(
    engine: AsyncEngine, builder: PromptBuilder, undisturbed: dict[str, Answer]
) -> None:
    """No token has come yet; what comes is what would have come."""
    kill(engine)
    await eventually(lambda: _is_down(engine))
    await until_ready(engine)  # caches are empty, so pictures are encoded
    asking = asyncio.create_task(all_answers(engine, builder, "encoding"))
    await asyncio.sleep(0)
    await until_computing(engine)
    kill(engine)
    assert await asking == undisturbed


async def test_an_idle_engine_dies(engine: AsyncEngine, builder: PromptBuilder, undisturbed: dict[str, Answer]) -> None:
    """Requests that come while there is none are served by the next."""
    assert await becomes_clean(engine)
    kill(engine)
    await eventually(lambda: _is_down(engine))
    [stats] = await engine.stats()
    assert (stats.num_running, stats.kv_blocks_used) == (0, 0)
    await engine.check_health()
    assert await all_answers(engine, builder, "idle") == undisturbed


async def test_what_nobody_waits_for_is_not_replayed(engine: AsyncEngine, builder: PromptBuilder) -> None:
    asked = prompts(builder)
    streams = [await engine.submit(kind, asked[kind], GREEDY) for kind in ("greedy", "seeded", "choices")]
    for stream in streams:
        await anext(stream)
    kill(engine)
    await eventually(lambda: _is_down(engine))
    await streams[0].aclose()
    held = await engine.integrity()
    assert (held.num_requests, held.shared_bytes > 0) == (2, True)
    for stream in streams[1:]:
        await stream.aclose()
    assert (await engine.integrity()).is_clean
    await until_ready(engine)
    [stats] = await engine.stats()
    assert stats.num_steps == 0, "the new engine was given nothing"


async def test_usage_does_not_change_on_the_way(engine: AsyncEngine, builder: PromptBuilder) -> None:
    """Cached tokens are those that the first engine found, prompt tokens those of the prompt."""
    prompt = builder.build("The quick brown fox jumps over the lazy dog. " * 8)
    await answer_of(engine, "first", prompt, GREEDY)
    stream = await engine.submit("second", prompt, GREEDY)
    deltas = [await anext(stream)]
    kill(engine)
    deltas += [delta async for delta in stream]
    assert {delta.num_cached_tokens for delta in deltas} == {deltas[0].num_cached_tokens}
    assert deltas[0].num_cached_tokens > 0
    assert {delta.num_prompt_tokens for delta in deltas} == {len(prompt.token_ids)}
    assert {delta.scheduled_at for delta in deltas} == {deltas[0].scheduled_at} and deltas[0].scheduled_at > 0


async def test_logprobs_go_on(engine: AsyncEngine, builder: PromptBuilder) -> None:
    """One entry a token from both engines, the rivals of each with them."""

    async def logprobs_of(request_id: str, num_kills: int) -> list[tuple[int, list[float]]]:
        stream = await engine.submit(request_id, prompts(builder)["logprobs"], EVERY_KIND["logprobs"])
        found = []
        async for delta in stream:
            assert delta.logprobs is not None
            assert [each.token_ids[0] for each in delta.logprobs] == delta.token_ids
            found += [(each.token_ids[0], sorted(each.logprobs)) for each in delta.logprobs]
            if num_kills and len(found) > 40:
                kill(engine)
                num_kills = 0
        return found

    calm, before = await logprobs_of("logprobs-calm", 0), engine.last_stats[0].num_replays
    killed = await logprobs_of("logprobs-killed", 1)
    assert engine.last_stats[0].num_replays == before + 1
    assert len(calm) == 150 and {len(each) for _, each in calm} <= {2, 3}
    assert [token_id for token_id, _ in killed] == [token_id for token_id, _ in calm]
    for (_, one), (_, other) in zip(calm, killed, strict=True):
        assert other == pytest.approx(one, abs=1e-4)


async def test_stops_and_limits_count_the_output_of_both_engines(
    engine: AsyncEngine, builder: PromptBuilder, undisturbed: dict[str, Answer]
) -> None:
    """A stop string of which one half came from the dead engine; min_tokens that hold a stop token back."""
    text, token_ids, *_ = undisturbed["greedy"][0]
    cut = len(text) // 2
    stop = next(text[at : at + 6] for at in range(cut, len(text)) if text.index(text[at : at + 6]) >= cut)
    prompt = prompts(builder)["greedy"]
    early = token_ids[90]
    params = {
        "stop": GREEDY.replace(stop=stop),
        "min": GREEDY.replace(stop_token_ids=[early], min_tokens=120),
    }
    expected = {name: await answer_of(engine, f"{name}-calm", prompt, each) for name, each in params.items()}
    assert expected["stop"][0][3] == stop
    assert len(expected["min"][0][1]) >= 120
    asking = {
        name: asyncio.create_task(answer_of(engine, f"{name}-killed", prompt, each)) for name, each in params.items()
    }
    for num_tokens in (40, 60, 40):
        await until_computing(engine, num_tokens)
        kill(engine)
        await eventually(lambda: _is_down(engine))
    assert {name: await task for name, task in asking.items()} == expected


@pytest.mark.slow
async def test_killed_at_random_moments(
    engine: AsyncEngine, builder: PromptBuilder, undisturbed: dict[str, Answer]
) -> None:
    """Whenever it dies: while pixels are shared, in the first step, between two engines."""
    moments = random.Random(5)
    for turn in range(3):
        asking = asyncio.create_task(all_answers(engine, builder, f"random-{turn}"))
        await asyncio.sleep(moments.uniform(0, 0.3))
        if engine.replicas[0].engine_pid is not None:
            kill(engine)
        assert await asking == undisturbed


# ---------------------------------------------------------------------------------------------- hanging and faults


async def test_a_stopped_engine_is_replaced(
    start: Start, builder: PromptBuilder, undisturbed: dict[str, Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_ENGINE_ITERATION_TIMEOUT_S", "2")
    engine = await start()
    asking = asyncio.create_task(all_answers(engine, builder, "stopped"))
    await until_computing(engine, 100)
    pid = engine.replicas[0].engine_pid
    kill(engine, signal.SIGSTOP)
    assert await asking == undisturbed
    assert not is_running(pid)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        pytest.param("exit:poison", "the process ended with status 3", marks=pytest.mark.slow),
        ("segv:poison@25", "the process was ended by SIGSEGV in "),
        pytest.param("raise:poison@40", "the engine died: RuntimeError in a step", marks=pytest.mark.slow),
    ],
)
async def test_a_poisonous_request_fails_alone(
    fault: str,
    told: str,
    start: Start,
    builder: PromptBuilder,
    undisturbed: dict[str, Answer],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """It crashes the engine when it arrives, or when it has got somewhere; its eighteen neighbours get everything.

    The log tells how it ended, but not the text of its exception, nor where files and memory lie.
    """
    monkeypatch.setenv("TRIFOCAL_FAULT_INJECT", fault)
    monkeypatch.setenv("TRIFOCAL_ALLOW_FAULT_INJECTION", "1")
    # An earlier test may have given the logger of this process a stream that is closed by now.
    monkeypatch.setattr(logging.getLogger("trifocal"), "handlers", [])
    engine = await start()
    asking = asyncio.gather(*(all_answers(engine, builder, f"neighbour-{number}") for number in range(3)))
    await until_computing(engine, 50)
    with pytest.raises(RequestError, match="engine crashed twice") as caught:
        await answer_of(engine, "poison", builder.build("The quick brown poison"), GREEDY)
    assert (caught.value.status, caught.value.code) == (500, "engine_fault")
    assert await asking == [undisturbed] * 3
    assert engine.last_stats[0].num_restarts == 2
    assert await becomes_clean(engine)
    written = caplog.text + capfd.readouterr().err
    assert told in written
    assert not [word for word in ("injected fault", 'File "', "0x0", "Traceback") if word in written]


@pytest.mark.slow
async def test_a_request_on_which_the_engine_hangs_fails_alone(
    start: Start, builder: PromptBuilder, undisturbed: dict[str, Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIFOCAL_FAULT_INJECT", "hang:poison")
    monkeypatch.setenv("TRIFOCAL_ALLOW_FAULT_INJECTION", "1")
    monkeypatch.setenv("VLLM_ENGINE_ITERATION_TIMEOUT_S", "2")
    engine = await start()
    asking = asyncio.create_task(all_answers(engine, builder, "neighbour"))
    with pytest.raises(RequestError, match="engine crashed twice"):
        await answer_of(engine, "poison", builder.build("The quick brown poison"), GREEDY)
    assert await asking == undisturbed


async def test_faults_are_injected_only_where_that_is_allowed(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIFOCAL_FAULT_INJECT", "exit:poison")
    with pytest.raises(ConfigError, match="TRIFOCAL_ALLOW_FAULT_INJECTION"):
        await start()


# ---------------------------------------------------------------------------------------------- the end


async def test_no_engine_comes_back(start: Start, builder: PromptBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIFOCAL_ENGINE_MAX_RESTARTS", "0")
    engine = await start()
    streams = [await engine.submit(str(n), prompts(builder)["greedy"], GREEDY.replace(n=n)) for n in (1, 3)]
    await anext(streams[0])
    kill(engine)
    for stream in streams:
        with pytest.raises(EngineDeadError, match="SIGKILL"):
            async for _ in stream:
                pass
    assert engine.died.is_set()
    with pytest.raises(EngineDeadError):
        await engine.submit("late", prompts(builder)["greedy"], GREEDY)
    with pytest.raises(EngineDeadError):
        await engine.check_health()


async def test_a_checkpoint_that_has_gone_meanwhile(start: Start, builder: PromptBuilder, tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path / "model")
    engine = await start(resolve(EngineArgs(model=str(folder))))
    stream = await engine.submit("a", prompts(builder)["seeded"], GREEDY)
    (folder / "model.safetensors").unlink()
    kill(engine)
    with pytest.raises(EngineDeadError, match="safetensors"):
        async for _ in stream:
            pass
    assert engine.replicas[0].engine_pid is None


@pytest.mark.parametrize("moment", [pytest.param("dies", marks=pytest.mark.slow), "starts again"])
async def test_shutdown_while_the_engine_is_replaced(moment: str, start: Start, builder: PromptBuilder) -> None:
    before = open_memory()
    engine = await start()
    stream = await engine.submit("a", prompts(builder)["greedy"], GREEDY)
    await anext(stream)
    kill(engine)
    if moment == "starts again":
        await eventually(lambda: _is_down(engine))
    await engine.shutdown()
    assert engine.replicas[0].engine_pid is None
    assert open_memory() == before
    with pytest.raises(EngineDeadError, match="shutting down"):
        async for _ in stream:
            pass


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)])
async def test_it_is_killed_or_stopped_before_it_is_up(
    number: signal.Signals, config: EngineConfig, builder: PromptBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows of it yet; the next one comes up. One that starts slowly is left alone."""
    monkeypatch.setenv("VLLM_ENGINE_ITERATION_TIMEOUT_S", "0.5")  # less than any start takes
    before = _children()
    config = replace(config, supervision=SupervisionConfig())
    starting = asyncio.create_task(AsyncEngine.start(config, lambda: builder.tokenizer))

    async def is_new() -> bool:
        return bool(_children() - before)

    assert await eventually(is_new)
    (pid,) = _children() - before
    os.kill(pid, number)
    engine = await starting
    assert engine.replicas[0].engine_pid != pid and not is_running(pid)
    await engine.shutdown()


def _children() -> set[int]:
    return {int(pid) for pid in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()}


_SERVER = """
import asyncio, sys
from trifocal.config.engine import EngineArgs, resolve
from trifocal.engine.async_engine import AsyncEngine
from trifocal.prompt.builder import PromptBuilder
from trifocal.sampling_params import SamplingParams

async def main():
    config = resolve(EngineArgs(model=sys.argv[1], max_model_len=512))
    builder = PromptBuilder(config)
    engine = await AsyncEngine.start(config, lambda: builder.tokenizer)
    stream = await engine.submit("poison", builder.build("hello"), SamplingParams(max_tokens=400))
    if sys.argv[2] == "computing":
        await anext(stream)
    print(engine.replicas[0].engine_pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.parametrize(
    "moment",
    [pytest.param("computing", marks=pytest.mark.slow), "hanging", pytest.param("stopped", marks=pytest.mark.slow)],
)
async def test_the_server_process_is_killed(moment: str, config: EngineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL to the server: the engine is gone at once, whatever it was doing, and no file is left in memory."""
    if moment == "hanging":
        monkeypatch.setenv("TRIFOCAL_FAULT_INJECT", "hang:poison")
        monkeypatch.setenv("TRIFOCAL_ALLOW_FAULT_INJECTION", "1")
    files = set(Path("/dev/shm").iterdir())
    command = [sys.executable, "-c", _SERVER, config.model.spec.path, moment]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        pid = int(server.stdout.readline())
        assert is_running(pid)
        if moment == "stopped":
            os.kill(pid, signal.SIGSTOP)
        server.kill()
    assert is_gone_soon(pid)
    assert {file for file in set(Path("/dev/shm").iterdir()) - files if "trifocal" in file.name} == set()
