"""Log-probabilities of prompts through `LLM`, against those that transformers' logits give."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.engine_runs import is_idle, picture, turn
from tests.models.families import ENTRIES
from tests.models.test_greedy_equality import build, media_of
from tests.oracle import Sample
from trifocal.config.engine import EngineArgs, resolve
from trifocal.errors import RequestError
from trifocal.llm import LLM
from trifocal.prompt.builder import PromptBuilder
from trifocal.sampling_params import SamplingParams
from trifocal.types import RequestOutput, StepPlan, StepResult, TokenLogprobs
from trifocal.worker import prompt_logprobs as module
from trifocal.worker.model_runner import ModelRunner
from trifocal.worker.sampler import Sampler

ENTRY = ENTRIES["qwen2_5_vl"]
WHOLE = SamplingParams(max_tokens=0, prompt_logprobs=3)
TEXT = {"prompt": turn("How many circles are there, and where? " * 12)}
PICTURE = {"prompt": turn(f"Look: {ENTRY.image} What is in it?"), "multi_modal_data": {"image": picture(3)}}
PROMPTS: list[Any] = [TEXT, PICTURE, {"prompt_token_ids": [7]}]
Expected = list[torch.Tensor | None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ENTRY.write(tmp_path_factory.mktemp("tiny") / "model", "flat")


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[Expected]:
    """For each token of each prompt the log-probabilities of the vocabulary before it; None where there are none."""
    builder = PromptBuilder(resolve(EngineArgs(model=str(folder))))
    reference, found = ENTRY.reference(folder), []
    for given in PROMPTS[:2]:
        prompt = build(builder, given)
        sample = Sample(prompt, media_of(given, prompt))
        rows = reference.logits(sample)[:, : builder.tokenizer.vocab_size].log_softmax(-1)
        is_embed = sample.is_embed.tolist()
        found.append([None, *(None if is_embed[i + 1] else row for i, row in enumerate(rows[:-1]))])
    builder.close()
    return [*found, [None]]


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with LLM(str(folder), dtype="float32") as llm:
        yield llm


def ask(llm: LLM, params: SamplingParams = WHOLE) -> list[RequestOutput]:
    return llm.generate(PROMPTS, params, use_tqdm=False)


def check(outputs: list[RequestOutput], expected: list[Expected], count: int = 3) -> None:
    for output, rows in zip(outputs, expected, strict=True):
        assert output.prompt_logprobs is not None
        for token_id, entry, row in zip(output.prompt_token_ids, output.prompt_logprobs, rows, strict=True):
            assert (entry is None) == (row is None)
            if entry is not None and row is not None:
                assert (entry.token_ids[0], len(entry.token_ids)) == (token_id, 1 + count)
                assert entry.logprobs == pytest.approx(row[entry.token_ids].tolist(), abs=1e-4)
                assert entry.logprobs[1:] == pytest.approx(row.topk(count).values.tolist(), abs=1e-4)
                assert entry.rank == 1 + int((row > row[token_id]).sum())


def values(outputs: list[RequestOutput]) -> list[list[TokenLogprobs | None] | None]:
    return [output.prompt_logprobs for output in outputs]


def test_they_are_transformers_likelihoods_whatever_is_cached(llm: LLM, expected: list[Expected]) -> None:
    first = ask(llm)
    check(first, expected)
    assert [(o.outputs[0].token_ids, o.outputs[0].finish_reason, o.finished) for o in first] == [
        ([], "length", True)
    ] * 3
    assert all(o.metrics.finished_time and not o.metrics.first_token_time for o in first)
    assert values(ask(llm)) == values(first), "with a warm cache"
    assert [output.num_cached_tokens for output in ask(llm)] == [0] * 3
    plain = llm.generate(TEXT, SamplingParams(temperature=0, max_tokens=4), use_tqdm=False)[0]
    assert plain.num_cached_tokens > 100, "what was computed for them is published"
    assert plain.prompt_logprobs is None
    for count in (0, 1):
        check(ask(llm, SamplingParams(max_tokens=0, prompt_logprobs=count)), expected, count)
    assert is_idle(llm.stats())


def test_tokens_and_choices_beside_them(llm: LLM, expected: list[Expected]) -> None:
    params = SamplingParams(n=3, temperature=1.0, seed=1, max_tokens=6, ignore_eos=True, logprobs=1)
    alone, both = ask(llm, params), ask(llm, params.replace(prompt_logprobs=3))
    check(both, expected)
    assert [output.outputs for output in both] == [output.outputs for output in alone]
    check(ask(llm, WHOLE.replace(n=2)), expected)


@pytest.mark.parametrize("is_compiled", [False, True], ids=["torch", "kernels"])
def test_chunks_and_preemption(
    folder: Path, expected: list[Expected], is_compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each sequence starts over when it loses its blocks, and tells of its prompt once."""
    monkeypatch.setenv("TRIFOCAL_CPU_KERNELS", str(int(is_compiled)))
    monkeypatch.setattr(module, "_MOST_ROWS", 5)
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, prompt_logprobs=3)
    with LLM(str(folder), dtype="float32", max_num_batched_tokens=24, num_gpu_blocks_override=20) as small:
        check(ask(small), expected)
        check(small.generate(PROMPTS + PROMPTS, params, use_tqdm=False), expected + expected)
        assert small.stats().num_preemptions > 0
        assert is_idle(small.stats())


@pytest.mark.parametrize("num_steps", [3, 14])
def test_a_step_that_fails_before_or_behind_the_end_of_the_prompt(
    folder: Path, expected: list[Expected], num_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was sent is not sent again; what was begun begins anew."""
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, prompt_logprobs=3)
    compute, calls = ModelRunner._compute, []

    def failing(self: ModelRunner, plan: StepPlan) -> StepResult:
        calls.append(plan)
        if len(calls) == num_steps:
            raise RuntimeError("a fault of the device")
        return compute(self, plan)

    with LLM(str(folder), dtype="float32", max_num_batched_tokens=24) as llm:
        undisturbed = ask(llm, params)
        monkeypatch.setattr(ModelRunner, "_compute", failing)
        replayed = ask(llm, params)
        assert llm.stats().num_restarts == 1
    check(replayed, expected)
    assert [output.outputs for output in replayed] == [output.outputs for output in undisturbed]


def test_logits_that_are_no_numbers_end_the_request_alone(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain request beside it goes on; so does one whose prompt fails in another way."""
    greedy = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    undisturbed = llm.generate(TEXT, greedy, use_tqdm=False)[0].outputs[0].token_ids
    logprobs_of = Sampler.logprobs_of
    monkeypatch.setattr(
        Sampler, "logprobs_of", lambda self, logits, *rest: logprobs_of(self, logits * torch.nan, *rest)
    )
    with pytest.raises(
        RequestError, match="the log-probabilities of the prompt could not be computed: the model produced no"
    ) as caught:
        llm.generate([TEXT, TEXT], [WHOLE, greedy], use_tqdm=False)
    assert caught.value.status == 500
    assert llm.generate(TEXT, greedy, use_tqdm=False)[0].outputs[0].token_ids == undisturbed
    assert is_idle(llm.stats())


def test_bounds(llm: LLM) -> None:
    with pytest.raises(RequestError, match="^prompt_logprobs asks for 21, but at most 20 are allowed") as caught:
        ask(llm, SamplingParams(max_tokens=0, prompt_logprobs=21))
    assert caught.value.param == "prompt_logprobs"
    limit = llm._engine.limits.context_len
    whole = llm.generate({"prompt_token_ids": [5] * limit}, WHOLE, use_tqdm=False)[0]
    assert len(whole.prompt_logprobs or ()) == limit, "a prompt may fill the context where no answer is asked for"
