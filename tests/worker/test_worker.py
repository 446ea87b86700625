"""What a worker allocates: a setting that asks for too much ends in an error that names it, and what would fit."""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.logged import messages
from trifocal.config.engine import EngineArgs, EngineConfig, resolve
from trifocal.errors import ConfigError
from trifocal.platforms.cpu import CpuPlatform
from trifocal.platforms.interface import MemoryInfo
from trifocal.worker.context import WorkerContext
from trifocal.worker.pixels import LocalPixels
from trifocal.worker.worker import Worker

_FREE = 1 << 26


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 64 MiB left."""
    monkeypatch.setattr(CpuPlatform, "memory", lambda self: MemoryInfo(free=_FREE, total=2 * _FREE))
    monkeypatch.delenv("TRIFOCAL_CPU_KVCACHE_SPACE", raising=False)
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)


def worker(folder: Path, **changes: Any) -> Worker:
    changes = {"enforce_eager": True, **changes}
    return made(resolve(EngineArgs(model=str(folder), device="cpu", load_format="dummy", **changes)))


def made(config: EngineConfig) -> Worker:
    return Worker(config, WorkerContext.alone(config.parallel, LocalPixels()))


def fitting(error: ConfigError) -> int:
    """The number that the message says would fit."""
    [number] = re.findall(r"at most (\d+) blocks fit", str(error))
    return int(number)


def test_blocks_that_do_not_fit(folder: Path) -> None:
    """Where steps are captured, the scratch block for padding takes its part."""
    for is_eager in (True, False):
        with pytest.raises(
            ConfigError, match="^--num-gpu-blocks-override 100000000: .* but 0.06 GiB are free"
        ) as caught:
            worker(folder, num_gpu_blocks_override=100_000_000, enforce_eager=is_eager)
        num_blocks = fitting(caught.value)
        with pytest.raises(ConfigError):
            worker(folder, num_gpu_blocks_override=num_blocks + 1, enforce_eager=is_eager)
        made = worker(folder, num_gpu_blocks_override=num_blocks, enforce_eager=is_eager)
        assert made.capacity.num_blocks == num_blocks
        assert made.graphs.attention.cache.keys.shape[1] == num_blocks + (0 if is_eager else 1)


@pytest.mark.parametrize("name", ["VLLM_CPU_KVCACHE_SPACE", "TRIFOCAL_CPU_KVCACHE_SPACE"])
def test_a_variable_that_asks_for_too_much(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "4000")
    monkeypatch.setenv("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "1")
    with pytest.raises(ConfigError, match=f"^{name}=4000: "):
        worker(folder, max_model_len=1 << 26, max_num_batched_tokens=64)


def test_bytes_of_kv_cache(folder: Path) -> None:
    by_bytes = worker(folder, kv_cache_memory_bytes=1 << 20).capacity.num_blocks
    assert 0 < by_bytes == worker(folder, kv_cache_memory_bytes=(1 << 20) + 1).capacity.num_blocks
    assert worker(folder, kv_cache_memory_bytes=1 << 21).capacity.num_blocks == 2 * by_bytes
    with pytest.raises(ConfigError, match="^--kv-cache-memory-bytes 1 leaves no memory for the KV cache, whose blocks"):
        worker(folder, kv_cache_memory_bytes=1)


def test_a_step_that_does_not_fit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "1")
    monkeypatch.setattr(Worker, "_profile_peak", lambda self: 3 * _FREE)
    with pytest.raises(
        ConfigError,
        match="^--max-num-batched-tokens 3000: a step of 3000 tokens takes about 0.19 GiB, .* steps of 1000 tokens fit",
    ):
        worker(folder, max_model_len=4000, max_num_batched_tokens=3000)


def test_a_step_that_may_not_fit_is_a_warning_beside_a_size_that_is_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "0.01")
    for factor, is_fatal in ((1.5, False), (3, True)):
        monkeypatch.setattr(Worker, "_profile_peak", lambda self, factor=factor: int(factor * _FREE))
        with pytest.raises(ConfigError, match="^--max-num-batched-tokens 30: ") if is_fatal else nullcontext():
            worker(folder, max_num_batched_tokens=30)
    assert [message[:28] for message in messages(caplog)] == ["--max-num-batched-tokens 30:"]


def test_an_engine_that_takes_the_place_of_another_measures_nothing(folder: Path) -> None:
    from dataclasses import replace

    config = resolve(EngineArgs(model=str(folder), device="cpu", load_format="dummy", num_gpu_blocks_override=10**9))
    cache, scheduling = replace(config.cache, num_blocks_before=7), replace(config.scheduling, max_model_len=64)
    assert made(replace(config, cache=cache, scheduling=scheduling)).capacity.num_blocks == 7
