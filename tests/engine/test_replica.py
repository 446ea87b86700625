"""Two replicas behind one `AsyncEngine`: what becomes of the requests of one that is given up."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from pathlib import Path

import pytest

from tests.engine.processes import is_running
from trifocal.config.engine import EngineArgs, EngineConfig, resolve
from trifocal.engine.async_engine import AsyncEngine
from trifocal.engine.replica import Replica
from trifocal.engine.stream import RequestStream
from trifocal.engine.supervisor import Supervisor
from trifocal.errors import EngineDeadError, RequestError
from trifocal.metrics import Metrics
from trifocal.prompt.builder import PromptBuilder
from trifocal.sampling_params import SamplingParams

pytestmark = pytest.mark.asyncio

GREEDY = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)


async def start_replica(config: EngineConfig) -> Replica:
    supervisor = Supervisor(config.supervision)
    await supervisor.spawn()
    return Replica(supervisor, (await supervisor.start(config)).limits)


async def text_of(stream: RequestStream) -> str:
    return "".join([delta.text async for delta in stream])


async def test_requests_of_a_replica_that_is_given_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its suspect ends with `engine_fault`, the others go on elsewhere; only the end of the last replica is the end."""
    monkeypatch.setenv("TRIFOCAL_ENGINE_MAX_RESTARTS", "0")
    monkeypatch.setenv("TRIFOCAL_FAULT_INJECT", "exit:poison@20")
    monkeypatch.setenv("TRIFOCAL_ALLOW_FAULT_INJECTION", "1")
    config = resolve(EngineArgs(model=str(folder), dtype="float32", max_model_len=512, max_num_seqs=1))
    builder = PromptBuilder(config)
    replicas = [await start_replica(config) for _ in range(2)]
    pids = [replica.engine_pid for replica in replicas]
    engine = AsyncEngine(config, replicas, builder.tokenizer)
    prompts = [builder.build(f"The quick brown fox {number}") for number in range(3)]

    expected = [
        await text_of(await engine.submit(str(number), prompt, GREEDY)) for number, prompt in enumerate(prompts)
    ]
    assert [stats.num_generation_tokens for stats in await engine.stats()] == [120, 0], "the first one that is ready"
    shown = Metrics("tiny", {}).render(await engine.stats()).decode()
    for prefix in ("vllm", "trifocal"):
        found = re.findall(rf"^{prefix}:generation_tokens_total{{(.*)}} (.*)$", shown, re.MULTILINE)
        assert [('engine="0"' in labels, value) for labels, value in found] == [(True, "120.0"), (False, "0.0")]
        assert len(re.findall(rf"^{prefix}:iteration_tokens_total_count{{.*engine=", shown, re.MULTILINE)) == 2
    with pytest.raises(RequestError, match="in use"):
        await asyncio.gather(*(engine.submit("twice", prompts[0], GREEDY) for _ in range(2)))

    poison = await engine.submit("poison", prompts[0], GREEDY)
    others = [await engine.submit(f"other-{number}", prompt, GREEDY) for number, prompt in enumerate(prompts)]
    with pytest.raises(RequestError, match="cannot be started again") as caught:
        await text_of(poison)
    assert (caught.value.status, caught.value.code) == (500, "engine_fault")
    assert [await text_of(stream) for stream in others] == expected
    assert [replica.is_ready for replica in replicas] == [False, True] and engine.is_ready
    assert not engine.died.is_set()

    last = await engine.submit("last", prompts[0], GREEDY)
    assert pids[1] is not None
    os.kill(pids[1], signal.SIGKILL)
    with pytest.raises(EngineDeadError, match="SIGKILL"):
        await text_of(last)
    assert engine.died.is_set() and not engine.is_ready
    await engine.shutdown()
    assert not any(is_running(pid) for pid in pids if pid is not None)
