"""Which steps are replayed, and that padding changes nothing for the rows that are real."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import tiny
from tests.kernels import isa
from tests.kernels.decoders import FORMATS, Steps, decoder
from tests.logged import messages
from trifocal.attention.cpu import CpuAttention
from trifocal.kernels.cpu.ops import CpuKernels
from trifocal.layers.linear import PLAIN
from trifocal.llm import LLM
from trifocal.sampling_params import SamplingParams
from trifocal.worker.graphs import GraphRunner

GREEDY = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)


@torch.inference_mode()
def test_padding_changes_no_row_that_is_real(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, whatever sequences a step is made of; nothing but the scratch block is written beside their own.

    Products in float32 are torch's, which may round differently beside other rows.
    """
    library = isa.library("1")
    monkeypatch.setattr("trifocal.attention.cpu.load", lambda: library)
    for dtype, method in FORMATS:
        close = 0.0 if method is not PLAIN else 1e-5
        made = decoder(CpuKernels(library), dtype, method)
        eager, padded = (Steps(made, dtype, library, sizes) for sizes in ((), (16, 24, 48)))
        for seed, query_lens in enumerate([[1, 1, 20], [23], [24], [3, 42], [46], [47], [48], [16]]):
            ours, theirs = padded.step(seed, query_lens), eager.step(seed, query_lens)
            torch.testing.assert_close(ours, theirs, rtol=close, atol=close)
        assert padded.graphs.num_replayed == 8
        for ours, theirs in (
            (padded.attention.cache.keys, eager.attention.cache.keys),
            (padded.attention.cache.values, eager.attention.cache.values),
        ):
            torch.testing.assert_close(ours[:, :-1], theirs[:, :-1], rtol=close, atol=close)
            assert not torch.equal(ours[:, -1], theirs[:, -1]), "there was padding"
        for seed, query_lens in enumerate([[1], [3], [25], [32], [49]]):  # the next size is far
            assert torch.equal(padded.step(seed, query_lens), eager.step(seed, query_lens))
        assert padded.graphs.num_replayed == 8


@torch.inference_mode()
def test_what_cannot_be_captured_is_tried_and_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "trifocal")
    library = isa.library("1")
    monkeypatch.setattr("trifocal.attention.cpu.load", lambda: library)
    made = decoder(CpuKernels(library), torch.float32, PLAIN)
    add, added = made.norm.add, []

    def by_torch(*args: Any) -> Any:
        added.append(len(args[0]))
        total, normed = add(*args)
        return total, normed * 1

    monkeypatch.setattr(made.norm, "add", by_torch)
    steps = Steps(made, torch.float32, library, (1, 2, 3))
    steps.graphs.capture(torch.device("cpu"))
    assert added == [3]
    steps.step(0, [1])
    assert (added, steps.graphs.num_replayed) == ([3, 1], 0)
    monkeypatch.setattr("trifocal.attention.cpu.load", lambda: None)
    Steps(made, torch.float32, library, (1, 2, 3)).graphs.capture(torch.device("cpu"))
    assert [message.partition(": ")[2] for message in messages(caplog, "INFO") if "captured" in message] == [
        "they call torch's mul, which is not a compiled kernel",
        "torch computes attention, as no kernel reads this KV cache",
    ]


def graphs_of(llm: LLM) -> GraphRunner:
    graphs: GraphRunner = llm._engine.executor._worker.runner.graphs  # type: ignore[attr-defined]
    return graphs


def test_flags(tmp_path: Path) -> None:
    isa.library("1")
    folder = str(tiny.write_checkpoint(tmp_path / "model"))
    for flags, is_replayed in (
        ({}, True),
        ({"enforce_eager": True}, False),
        ({"compilation_config": {"cudagraph_capture_sizes": [2]}}, False),
        ({"compilation_config": {"cudagraph_capture_sizes": [1]}}, True),
        ({"compilation_config": {"cudagraph_mode": "NONE"}}, False),
    ):
        with LLM(folder, dtype="bfloat16", **flags) as llm:  # type: ignore[arg-type]
            llm.generate("How many circles?", GREEDY, use_tqdm=False)
            assert isinstance(graphs_of(llm).attention, CpuAttention)
            assert (graphs_of(llm).num_replayed > 0) is is_replayed, flags


def test_a_batch_that_is_padded_answers_as_one_that_is_not(tmp_path: Path) -> None:
    """The blocks that sequences get are all in use, and the one behind them is nobody's."""
    isa.library("1")
    folder = str(tiny.write_checkpoint(tmp_path / "model"))
    prompts = [f"{'How many circles? ' * (number % 3 + 1)}{number}" for number in range(34)]
    answers, replayed = [], []
    for flags in ({"enforce_eager": True}, {"cudagraph_capture_sizes": [9, 36]}):
        with LLM(folder, dtype="bfloat16", max_num_seqs=40, num_gpu_blocks_override=100, **flags) as llm:  # type: ignore[arg-type]
            outputs = llm.generate(prompts, GREEDY, use_tqdm=False)
            answers.append([output.outputs[0].token_ids for output in outputs])
            replayed.append(graphs_of(llm).num_replayed)
            assert llm.stats().kv_blocks_total == 100
    assert answers[0] == answers[1]
    assert replayed[0] == 0 < replayed[1]
