"""The same greedy tokens whatever runs beside a request and however it is cut into steps: spans with text inside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import tiny_minicpmv as tiny
from trifocal.llm import LLM
from trifocal.types import EngineStats, RequestOutput, SamplingParams

IMAGE, VIDEO = "(<image>./</image>)", "(<video>./</video>)"
GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


def picture(seed: int, width: int = 220, height: int = 120) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def prompts() -> list[dict[str, Any]]:
    """Text; a picture in 3 tiles, two of them under the same words; 7 tiles in 2 rows; several; a sliced clip; both."""
    frames = np.stack([picture(seed) for seed in (30, 31)])
    given: list[tuple[str, dict[str, Any]]] = [
        ("How many circles?", {}),
        (f"{IMAGE}\nWhat is in the image?", {"image": picture(0)}),
        (f"{IMAGE}\nWhat is in the image?", {"image": picture(1)}),
        (f"Look: {IMAGE}", {"image": picture(2, 330, 210)}),
        (f"{IMAGE} or {IMAGE}{IMAGE}?", {"image": [picture(3, 60, 60), picture(4), picture(4)]}),
        (f"{VIDEO}\nWhere?", {"video": frames}),
        (f"{VIDEO} then {IMAGE} what?", {"video": frames[:1], "image": picture(5, 100, 90)}),
    ]
    return [{"prompt": text, "multi_modal_data": data} for text, data in given]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_checkpoint(tmp_path_factory.mktemp("tiny") / "model")


def tokens(outputs: list[RequestOutput]) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in outputs]


def one_by_one(folder: Path) -> list[list[int]]:
    """The reference: whole prompts, nothing cached."""
    with LLM(str(folder), enable_prefix_caching=False) as llm:
        return [tokens(llm.generate(prompt, GREEDY, use_tqdm=False))[0] for prompt in prompts()]


@pytest.fixture(scope="module")
def alone(folder: Path) -> list[list[int]]:
    return one_by_one(folder)


def together(folder: Path, rounds: int = 1, **engine_args: Any) -> tuple[list[list[int]], EngineStats]:
    with LLM(str(folder), **engine_args) as llm:
        for _ in range(rounds):
            outputs = llm.generate(prompts(), GREEDY, use_tqdm=False)
        stats = llm.stats()
    assert (stats.kv_blocks_used, stats.encoder_bytes_pinned, stats.num_running, stats.num_waiting) == (0, 0, 0, 0)
    return tokens(outputs), stats


def test_oracle_is_not_trivial(alone: list[list[int]]) -> None:
    assert len({tuple(each) for each in alone}) == len(alone), "prompts must give different answers"
    assert all(len(set(each)) > 2 for each in alone), "an answer of one repeated token proves nothing"


@pytest.mark.parametrize("version", ["2.5", "2.0"])
def test_older_versions_in_chunks(tmp_path: Path, version: tiny.Version) -> None:
    folder = tiny.write_checkpoint(tmp_path, version)
    expected = one_by_one(folder)
    assert len({tuple(each) for each in expected}) == len(expected)
    assert together(folder, max_num_batched_tokens=24)[0] == expected


def test_second_round_from_the_caches(folder: Path, alone: list[list[int]]) -> None:
    got, first = together(folder)
    again, second = together(folder, rounds=2)
    assert got == again == alone
    assert second.num_media_encoded == first.num_media_encoded == 8, "picture 4 is one item"
    assert second.prefix_hits > first.prefix_hits


@pytest.mark.parametrize("budget", [16, 40])
def test_chunks_within_a_picture(folder: Path, alone: list[list[int]], budget: int) -> None:
    """Of 16 tokens: ends fall on every kind of token in a span. Of 40: a picture of 7 tiles takes three chunks."""
    got, stats = together(folder, max_num_batched_tokens=budget)
    assert got == alone
    assert stats.num_steps > 600 // budget


def test_preemption_inside_a_picture(folder: Path, alone: list[list[int]]) -> None:
    got, stats = together(folder, num_gpu_blocks_override=14, max_num_batched_tokens=24)
    assert stats.num_preemptions > 0, "the pool must be too small for all"
    assert got == alone


def test_encoder_cache_for_one_item_at_a_time(folder: Path, alone: list[list[int]]) -> None:
    largest = 7 * tiny.QUERIES * tiny.HIDDEN * 4
    got, stats = together(folder, encoder_cache_gib=largest / 2**30, max_num_batched_tokens=64)
    assert got == alone
    assert stats.encoder_bytes_cached <= largest
