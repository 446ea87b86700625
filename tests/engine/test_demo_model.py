"""The built-in model through our engine: right answers, and the same ones however the work is cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.models.engine_runs import is_idle, tokens
from trifocal.llm import LLM
from trifocal.sampling_params import SamplingParams
from trifocal.types import EngineStats

DEMO = Path(__file__).parents[2] / "trifocal" / "demo"
GREEDY = SamplingParams(temperature=0, max_tokens=32)
TEXTS = ("Who are you?", "Hello", "What is the image content?")


def samples() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((DEMO / "samples" / "samples.json").read_text())
    return rows


def conversations() -> list[list[dict[str, Any]]]:
    """Every sample question, then the same files under another question, then text alone: 16 at least."""
    asked = [(row["media"], row["modality"], row["question"]) for row in samples()]
    asked += [(media, modality, "What is the image content?") for media, modality, _ in asked]
    found = [[{"role": "user", "content": [*map(part, media), {"type": "text", "text": question}]}]
             for media, modality, question in asked]  # fmt: skip
    found += [[{"role": "user", "content": text}] for text in TEXTS]
    assert len(found) >= 16
    return found


def part(name: str) -> dict[str, Any]:
    kind = "video_url" if name.endswith(".mp4") else "image_url"
    return {"type": kind, kind: {"url": (DEMO / "samples" / name).as_uri()}}


def answers(**engine_args: Any) -> tuple[list[list[int]], list[str], EngineStats]:
    with LLM(str(DEMO / "model"), **engine_args) as llm:
        outputs = llm.chat(conversations(), GREEDY, use_tqdm=False)
        stats = llm.stats()
    assert is_idle(stats)
    return tokens(outputs), [output.outputs[0].text for output in outputs], stats


@pytest.fixture(scope="module", params=["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def alone(dtype: str) -> tuple[list[list[int]], list[str]]:
    """The reference: one sequence at a time, nothing cached."""
    token_ids, texts, _ = answers(dtype=dtype, enable_prefix_caching=False, max_num_seqs=1)
    return token_ids, texts


def test_sample_questions_are_answered_right(alone: tuple[list[list[int]], list[str]]) -> None:
    expected = [row["answer"] for row in samples()]
    assert alone[1][: len(expected)] == expected


@pytest.mark.parametrize(
    "engine_args",
    [
        {"block_size": 16},
        {"block_size": 128},
        {"max_num_batched_tokens": 16},
        {"enable_prefix_caching": False},
    ],
    ids=str,
)
def test_the_same_tokens_together(
    dtype: str, alone: tuple[list[list[int]], list[str]], engine_args: dict[str, Any]
) -> None:
    assert answers(dtype=dtype, **engine_args)[0] == alone[0]


def test_the_same_tokens_with_preemption(dtype: str, alone: tuple[list[list[int]], list[str]]) -> None:
    got, _, stats = answers(dtype=dtype, num_gpu_blocks_override=24, enable_prefix_caching=False)
    assert stats.num_preemptions > 0, "the pool must be too small for all"
    assert got == alone[0]
