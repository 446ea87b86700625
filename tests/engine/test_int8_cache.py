"""`--kv-cache-dtype int8` on the built-in model: nearly the answers of a full cache, and its own ones however cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import kv_cache
from tests.models.engine_runs import is_idle, tokens
from trifocal.errors import ConfigError
from trifocal.llm import LLM
from trifocal.sampling_params import SamplingParams
from trifocal.types import RequestOutput

DEMO = Path(__file__).parents[2] / "trifocal" / "demo" / "model"
GREEDY = SamplingParams(temperature=0, max_tokens=24, logprobs=0)


def run(kv_cache_dtype: str = "int8", **engine_args: Any) -> tuple[list[RequestOutput], int]:
    """Answers to the sample questions, and how often a sequence was preempted."""
    with LLM(str(DEMO), kv_cache_dtype=kv_cache_dtype, **engine_args) as llm:
        outputs = llm.chat(kv_cache.samples(), GREEDY, use_tqdm=False)
        stats = llm.stats()
    assert is_idle(stats)
    return outputs, stats.num_preemptions


@pytest.fixture(scope="module")
def alone() -> list[RequestOutput]:
    """One sequence at a time, nothing cached."""
    return run(enable_prefix_caching=False, max_num_seqs=1)[0]


def test_logits_are_off_by_little(alone: list[RequestOutput]) -> None:
    full, _ = run("auto", enable_prefix_caching=False, max_num_seqs=1)
    pairs = [kv_cache.differences(*pair) for pair in zip(full, alone, strict=True)]
    found = [value for differences, _ in pairs for value in differences]
    assert 0 < max(found) < 0.2 and sum(found) / len(found) < 0.01
    assert sum(is_equal for _, is_equal in pairs) >= len(pairs) - 1


@pytest.mark.parametrize(
    "engine_args",
    [{"block_size": 128}, {"block_size": 32, "max_num_batched_tokens": 24}, {"num_gpu_blocks_override": 24}],
    ids=str,
)
def test_the_same_tokens_however_the_work_is_cut(alone: list[RequestOutput], engine_args: dict[str, Any]) -> None:
    got, preemptions = run(**engine_args)
    assert tokens(got) == tokens(alone)
    assert (preemptions > 0) == ("num_gpu_blocks_override" in engine_args)


def test_the_reference_gives_the_same_tokens(alone: list[RequestOutput], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIFOCAL_CPU_KERNELS", "0")
    assert tokens(run()[0]) == tokens(alone)


def test_more_tokens_fit(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIFOCAL_CPU_KVCACHE_SPACE", "0.01")
    room = {}
    for name in ("auto", "int8"):
        with LLM(str(DEMO), dtype="bfloat16", kv_cache_dtype=name, max_num_seqs=64) as llm:
            room[name] = llm.stats().kv_blocks_total
    assert 1.7 < room["int8"] / room["auto"] < 1.8  # 32 elements and a scale: 36 bytes instead of 64


def test_floats_of_8_bits_are_refused() -> None:
    with pytest.raises(ConfigError, match="^kv_cache_dtype must be auto or int8"):
        LLM(str(DEMO), kv_cache_dtype="fp8")
