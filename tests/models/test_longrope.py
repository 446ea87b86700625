"""LongRoPE (Phi3) through the engine: up to the original context the short factors, beyond it the long ones.

Every token is what a fresh forward of transformers over all tokens before it chooses, with the same log-probabilities,
however the sequence got past the border.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import tiny_internvl as tiny
from tests.kernels import isa
from tests.oracle import Sample, load_ours, new_cache
from tests.oracle_internvl import reference
from tests.tiny_text import LONGROPE_ORIGINAL
from trifocal.attention.base import AttentionBatch
from trifocal.attention.reference import ReferenceAttention
from trifocal.config.engine import EngineArgs, resolve
from trifocal.engine.engine import Engine
from trifocal.layers.rotary import RotaryEmbedding
from trifocal.media.media import Image
from trifocal.models.base import Model
from trifocal.prompt.builder import PromptBuilder
from trifocal.sampling_params import SamplingParams
from trifocal.types import EngineStats, Prompt, Request, TokenLogprobs
from trifocal.worker.graphs import GraphRunner

BORDER = LONGROPE_ORIGINAL
PARAMS = SamplingParams(temperature=0, max_tokens=20, logprobs=5, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_checkpoint(tmp_path_factory.mktemp("tiny") / "model", "phi3")


@pytest.fixture(scope="module")
def builder(folder: Path) -> Iterator[PromptBuilder]:
    made = PromptBuilder(resolve(EngineArgs(model=str(folder))))
    yield made
    made.close()


@pytest.fixture(scope="module")
def samples(builder: PromptBuilder) -> dict[str, Sample]:
    """Texts that begin alike, shorter and longer than the border, and pictures on both sides of it."""
    text = np.random.default_rng(3).integers(0, 256, 100).tolist()
    made = {f"text of {length}": Sample(Prompt(text[:length])) for length in (8, 20, BORDER, BORDER + 1, 50)}
    for name, tail in (("short picture", "What is it?"), ("long picture", "What is in it? " * 4)):
        pixels = np.random.default_rng(4).integers(0, 256, (56, 56, 3), dtype=np.uint8)
        prompt = builder.build(f"See <image> {tail}", {"image": [pixels]})
        made[name] = Sample(prompt, (Image(pixels),))
    assert [name for name, sample in made.items() if crosses(sample)] == ["text of 20", "text of 32", "short picture"]
    assert made["long picture"].num_tokens > BORDER
    return made


def crosses(sample: Sample) -> bool:
    """Whether it begins within the border, and more is computed before its last token."""
    return sample.num_tokens <= BORDER < sample.num_tokens + PARAMS.max_tokens - 1


@dataclass(eq=False)
class Answer:
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)


def run(
    folder: Path, builder: PromptBuilder, requests: list[Request], rounds: int = 1, **engine_args: Any
) -> tuple[dict[str, Answer], EngineStats]:
    """All together, each step planned while the one before runs; the answers of the last round."""
    config = resolve(EngineArgs(model=str(folder), device="cpu", **{"dtype": "float32", **engine_args}))
    engine = Engine(replace(config, model=replace(config.model, num_vocab=builder.tokenizer.vocab_size)))
    try:
        for _ in range(rounds):
            answers = {each.request_id: Answer(list(each.output_token_ids)) for each in requests}
            for each in requests:
                engine.add(each)
            while engine.has_work:
                for output in engine.step():
                    answers[output.request_id].token_ids += output.token_ids
                    answers[output.request_id].logprobs += output.logprobs or []
        return answers, engine.stats()
    finally:
        engine.shutdown()


def requests_for(samples: dict[str, Sample]) -> list[Request]:
    return [Request(name, sample.prompt, PARAMS) for name, sample in samples.items()]


def check(samples: dict[str, Sample], answers: dict[str, Answer], num_vocab: int) -> None:
    assert answers.keys() == samples.keys()
    for name, answer in answers.items():
        assert len(answer.token_ids) == PARAMS.max_tokens
        first = len(answer.token_ids) - len(answer.logprobs)
        for index, found in enumerate(answer.logprobs, start=first):
            sample = samples[name].followed_by(answer.token_ids[:index])
            expected = expected_logprobs(name, tuple(answer.token_ids[:index]), sample, num_vocab)
            top = expected.topk(5)
            assert found.token_ids == [answer.token_ids[index], *top.indices.tolist()]
            assert found.logprobs[1:] == pytest.approx(top.values.tolist(), abs=1e-3), (name, sample.num_tokens)


_EXPECTED: dict[Any, torch.Tensor] = {}


def expected_logprobs(name: str, answer: tuple[int, ...], sample: Sample, num_vocab: int) -> torch.Tensor:
    """Of the token after a sample, by a forward of transformers over all of it."""
    if (name, answer) not in _EXPECTED:
        logits = reference("phi3", "300M").logits(sample)[-1, :num_vocab]
        _EXPECTED[name, answer] = logits.log_softmax(-1)
    return _EXPECTED[name, answer]


@pytest.mark.parametrize(
    "engine_args",
    [
        {},
        {"max_model_len": 70},
        {"max_num_batched_tokens": 16},
        {"max_num_batched_tokens": 7, "block_size": 32},
        {"enable_chunked_prefill": False, "max_model_len": 128},
        {"enable_prefix_caching": False},
        {"max_num_seqs": 2},
        {"num_gpu_blocks_override": 6, "max_num_batched_tokens": 16},
    ],
    ids=str,
)
def test_on_both_sides_of_the_border(
    engine_args: dict[str, Any], folder: Path, builder: PromptBuilder, samples: dict[str, Sample]
) -> None:
    answers, stats = run(folder, builder, requests_for(samples), **engine_args)
    check(samples, answers, builder.tokenizer.vocab_size)
    num_crossing = sum(map(crosses, samples.values()))
    assert stats.num_preemptions >= num_crossing
    assert (stats.num_preemptions > num_crossing) is ("num_gpu_blocks_override" in engine_args), "each once"


def test_the_border_is_felt(samples: dict[str, Sample], folder: Path, builder: PromptBuilder) -> None:
    """Else these tests would prove nothing: with the factors of the other side log-probabilities are other ones."""
    sample = samples["text of 32"]
    within = expected_logprobs("text of 32", (), sample, builder.tokenizer.vocab_size)
    model = load_ours(folder)
    is_long = torch.ones(BORDER, dtype=torch.bool)
    inputs = model.merge(torch.tensor(sample.prompt.token_ids))
    for flags, is_right in ((None, True), (~is_long, True), (is_long, False)):
        hidden = model(inputs, sample.positions, whole(model, BORDER), flags)
        logprobs = model.logits(hidden)[-1, : builder.tokenizer.vocab_size].log_softmax(-1)
        assert torch.allclose(logprobs, within, atol=1e-3) is is_right
        assert is_right or (logprobs - within).abs().max() > 0.1


def whole(model: Model, num_tokens: int) -> ReferenceAttention:
    """Attention for one sequence in one block."""
    attention = ReferenceAttention(new_cache(model.language_model, 1, num_tokens))
    attention.begin(AttentionBatch(torch.arange(num_tokens), torch.tensor([[0]]), [num_tokens], [num_tokens]))
    return attention


def test_cached_blocks_serve_their_own_side_alone(
    folder: Path, builder: PromptBuilder, samples: dict[str, Sample]
) -> None:
    """All texts begin alike: in the second round each finds what those of its side have left, and nothing else."""
    texts = {name: sample for name, sample in samples.items() if name.startswith("text")}
    requests = requests_for(texts)
    first = [stats for _, stats in (run(folder, builder, requests), run(folder, builder, requests[::-1]))]
    answers, second = run(folder, builder, requests, rounds=2)
    check(texts, answers, builder.tokenizer.vocab_size)
    assert second.prefix_hits > 2 * max(each.prefix_hits for each in first)
    assert second.num_preemptions == 2 * sum(map(crosses, texts.values()))


@pytest.mark.parametrize("name", ["text of 20", "text of 32", "short picture"])
def test_a_new_engine_goes_on_on_the_right_side(
    name: str, folder: Path, builder: PromptBuilder, samples: dict[str, Sample]
) -> None:
    """As after the death of one, with the tokens generated so far: before the border, on it, and beyond."""
    sample = samples[name]
    calm, _ = run(folder, builder, [Request("calm", sample.prompt, PARAMS)])
    whole, border = tuple(calm["calm"].token_ids), BORDER - sample.num_tokens
    cuts = sorted({max(0, border - 3), border, border + 1, border + 2} - {0})
    requests = [Request(f"{name}/{cut}", sample.prompt, PARAMS, output_token_ids=whole[:cut]) for cut in cuts]
    answers, stats = run(folder, builder, requests)
    check({each: sample for each in answers}, answers, builder.tokenizer.vocab_size)
    assert {tuple(each.token_ids) for each in answers.values()} == {whole}
    assert stats.num_preemptions == sum(cut <= border for cut in cuts)


def test_replayed_steps_take_rows_of_both_sides(
    folder: Path, builder: PromptBuilder, samples: dict[str, Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A captured step knows nothing of frequencies: the rows' cosines and sines are its inputs."""
    isa.library("1")
    is_mixed: list[bool] = []
    is_replayed: list[bool] = []
    forward, forward_pass = RotaryEmbedding.forward, GraphRunner._forward

    def watched_forward(self: RotaryEmbedding, positions: Tensor, dtype: torch.dtype, is_long: Tensor | None) -> Any:
        is_mixed.append(is_long is not None and not is_long.all())
        return forward(self, positions, dtype, is_long)

    def watched_pass(self: GraphRunner, *args: Any) -> Tensor:
        before = self.num_replayed
        result = forward_pass(self, *args)
        is_replayed.append(self.num_replayed > before)
        return result

    monkeypatch.setattr(RotaryEmbedding, "forward", watched_forward)
    monkeypatch.setattr(GraphRunner, "_forward", watched_pass)
    answers, _ = run(folder, builder, requests_for(samples), dtype="bfloat16")
    assert sum(mixed and replayed for mixed, replayed in zip(is_mixed, is_replayed, strict=True)) > 5
    monkeypatch.undo()
    eager, _ = run(folder, builder, requests_for(samples), dtype="bfloat16", enforce_eager=True)
    for name, answer in answers.items():
        assert (answer.token_ids, answer.logprobs) == (eager[name].token_ids, eager[name].logprobs)
