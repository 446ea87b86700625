"""Replayed steps give what Python's give, bit for bit; what cannot be replayed is not."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests import tiny
from tests.kernels import isa
from trifocal.attention.base import AttentionBatch, KVCache
from trifocal.attention.cpu import CpuAttention
from trifocal.kernels.cpu.capture import CapturedSteps, _share
from trifocal.kernels.cpu.library import Library
from trifocal.kernels.cpu.ops import CpuKernels
from trifocal.layers.base import use_kernels
from trifocal.layers.linear import PLAIN, Linear, LinearMethod
from trifocal.llm import LLM
from trifocal.model_spec import RopeConfig, TextConfig
from trifocal.models.decoder import Decoder
from trifocal.models.qwen2 import Qwen2Decoder
from trifocal.models.qwen3 import Qwen3Decoder
from trifocal.platforms.cpu_linear import BlocksLinear as BLOCKS
from trifocal.platforms.cpu_linear import Int8BlocksLinear as INT8_BLOCKS
from trifocal.quant.int4 import Int4Linear
from trifocal.sampling_params import SamplingParams

CONFIG = TextConfig(
    model_type="qwen2", hidden_size=64, intermediate_size=96, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=16,
    vocab_size=40, rms_norm_eps=1e-6, max_position_embeddings=512, is_tied=True, hidden_act="silu", rope=RopeConfig(),
)  # fmt: skip

Method = LinearMethod | Callable[[CpuKernels], LinearMethod]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.fixture(params=isa.NAMES)
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Library:
    chosen = isa.library(request.param)
    monkeypatch.setattr("trifocal.attention.cpu.load", lambda: chosen)
    return chosen


@pytest.fixture
def kernels(library: Library) -> CpuKernels:
    return CpuKernels(library)


def decoder(kernels: CpuKernels, dtype: torch.dtype, method: Method, kind: type[Decoder] = Qwen2Decoder) -> Decoder:
    """Random weights."""
    generator = torch.Generator().manual_seed(1)
    torch.set_default_dtype(dtype)
    try:
        made = kind(CONFIG)
        for module in made.modules():
            if isinstance(module, Linear):
                module.use(method if isinstance(method, LinearMethod) else method(kernels))
    finally:
        torch.set_default_dtype(torch.float32)
    for module in made.modules():
        slots = module.weight_slots() if isinstance(module, Linear) else dict(module.named_parameters(recurse=False))
        for slot in slots.values():
            slot.copy_(torch.randn(slot.shape, generator=generator).to(dtype) / 4)
    use_kernels(made, kernels)
    return made


class Steps:
    """The same random steps for whoever asks."""

    def __init__(self, made: Decoder, dtype: torch.dtype, capture_sizes: tuple[int, ...]) -> None:
        self.made = made
        shape = (CONFIG.num_layers, 20, CONFIG.num_kv_heads, 16, CONFIG.head_dim)
        self.attention = CpuAttention(KVCache.allocate(shape, dtype=dtype, device=torch.device("cpu")), capture_sizes)
        for kept in (self.attention.cache.keys, self.attention.cache.values):
            kept.copy_(torch.randn(shape, generator=torch.Generator().manual_seed(2)))
        self.dtype = dtype

    def step(self, seed: int, query_lens: list[int]) -> Tensor:
        """Sequences of random lengths in blocks of their own."""
        rng = random.Random(seed)
        contexts = [length + rng.randrange(60) for length in query_lens]
        tables = torch.tensor([rng.sample(range(5 * index, 5 * index + 5), 5) for index in range(len(query_lens))])
        wheres = [torch.arange(end - length, end) for length, end in zip(query_lens, contexts, strict=True)]
        slots = torch.cat([table[where // 16] * 16 + where % 16 for table, where in zip(tables, wheres, strict=True)])
        embeds = torch.randn(len(slots), CONFIG.hidden_size, generator=torch.Generator().manual_seed(seed))
        self.attention.begin(AttentionBatch(slots, tables, query_lens, contexts))
        hidden: Tensor = self.made(embeds.to(self.dtype), torch.cat(wheres)[None], self.attention)
        return hidden.clone()


ROUNDS = [[1], [1, 1, 1], [1], [2, 1], [3], [1], [1, 1, 1], [40]]


@pytest.mark.parametrize(
    ("dtype", "method"),
    [(torch.float32, PLAIN), (torch.bfloat16, BLOCKS), (torch.bfloat16, INT8_BLOCKS), (torch.float32, INT8_BLOCKS)]
    + [(torch.bfloat16, Int4Linear(32))],
)
@torch.inference_mode()
def test_bit_for_bit(kernels: CpuKernels, dtype: torch.dtype, method: Method) -> None:
    made = decoder(kernels, dtype, method)
    eager, captured = Steps(made, dtype, ()), Steps(made, dtype, (1, 3))
    for seed, query_lens in enumerate(ROUNDS):
        expected, got = eager.step(seed, query_lens), captured.step(seed, query_lens)
        assert torch.equal(got, expected)
    for ours, theirs in ((captured.attention.cache.keys, eager.attention.cache.keys),):
        assert torch.equal(ours, theirs)
    assert captured.attention.captured is not None and eager.attention.captured is not None
    can_replay = dtype != torch.float32 or method is not PLAIN  # float32's products are torch's
    assert captured.attention.captured.num_replayed == (7 if can_replay else 0)
    assert eager.attention.captured.num_replayed == 0


@torch.inference_mode()
def test_another_number_of_threads_is_another_recording(kernels: CpuKernels) -> None:
    steps = Steps(decoder(kernels, torch.bfloat16, BLOCKS), torch.bfloat16, (1,))
    first = steps.step(0, [1])
    torch.set_num_threads(1)
    assert torch.equal(steps.step(0, [1]), first)
    assert steps.attention.captured is not None and steps.attention.captured.num_replayed == 2


@torch.inference_mode()
def test_captured_ahead(kernels: CpuKernels) -> None:
    """Nothing is computed meanwhile, Python runs no layer afterwards, and all recordings use the same memory."""
    made, sizes = decoder(kernels, torch.bfloat16, BLOCKS), (1, 2, 3)
    eager, steps = Steps(made, torch.bfloat16, ()), Steps(made, torch.bfloat16, sizes)
    keys = steps.attention.cache.keys.clone()
    ran: list[int] = []

    def run(num_tokens: int) -> None:
        ran.append(num_tokens)
        steps.step(num_tokens, [num_tokens])

    steps.attention.capture(run)
    captured = steps.attention.captured
    assert captured is not None and ran == [3, 2, 1] and captured.num_replayed == 0
    assert torch.equal(steps.attention.cache.keys, keys)
    assert len({tape.memory.data_ptr() for tape in captured._tapes.values()}) == 1
    for seed, query_lens in enumerate(ROUNDS):
        assert torch.equal(steps.step(seed, query_lens), eager.step(seed, query_lens))
    assert len(captured._tapes) == 3 and captured.num_replayed == 7


@torch.inference_mode()
def test_what_cannot_be_captured_is_tried_once(kernels: CpuKernels) -> None:
    steps = Steps(decoder(kernels, torch.float32, PLAIN), torch.float32, (1, 2, 3))
    ran: list[int] = []

    def run(num_tokens: int) -> None:
        ran.append(num_tokens)
        steps.step(num_tokens, [num_tokens])

    steps.attention.capture(run)
    assert ran == [3]


@torch.inference_mode()
def test_layers_that_torch_computes_are_not_replayed(kernels: CpuKernels) -> None:
    """Norms of heads are put together by torch."""
    made = decoder(kernels, torch.bfloat16, BLOCKS, Qwen3Decoder)
    eager, captured = Steps(made, torch.bfloat16, ()), Steps(made, torch.bfloat16, (1,))
    for seed in range(3):
        assert torch.equal(captured.step(seed, [1]), eager.step(seed, [1]))
    assert captured.attention.captured is not None and captured.attention.captured.num_replayed == 0


@torch.inference_mode()
def test_arithmetic_in_place_is_seen(library: Library, kernels: CpuKernels) -> None:
    """It changes a tensor that lies where it lay: a view all the same."""

    def layers(x: Tensor) -> Tensor:
        return kernels.rms_norm(x, weight, 1e-6).add_(1)

    weight, captured = torch.ones(16), CapturedSteps(library, (2,))
    for seed in range(3):
        x = torch.randn(2, 16, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(captured(layers, x), layers(x))
    assert captured.num_replayed == 0


def test_places_are_shared_by_what_never_lives_together() -> None:
    for seed in range(50):
        rng = random.Random(seed)
        begins = [rng.randrange(-1, 30) for _ in range(40)]
        ends = [begin + rng.randrange(8) for begin in begins]
        sizes = [rng.choice([1, 64, 100, 1000]) for _ in begins]
        offsets, total = _share(sizes, begins, ends)
        for one in range(40):
            assert offsets[one] % 64 == 0 and offsets[one] + sizes[one] <= total
            for other in range(one):
                together = begins[one] <= ends[other] and begins[other] <= ends[one]
                apart = offsets[one] + sizes[one] <= offsets[other] or offsets[other] + sizes[other] <= offsets[one]
                assert apart or not together
        assert total < sum(-(-size // 64) * 64 for size in sizes), "nothing was shared"


@pytest.mark.parametrize(
    ("flags", "is_replayed"),
    [
        ({}, True),
        ({"enforce_eager": True}, False),
        ({"compilation_config": {"cudagraph_capture_sizes": [2]}}, False),
        ({"compilation_config": {"cudagraph_capture_sizes": [1]}}, True),
        ({"compilation_config": {"cudagraph_mode": "NONE"}}, False),
    ],
)
def test_flags(flags: dict[str, object], is_replayed: bool, tmp_path: Path) -> None:
    isa.library("1")
    folder = tiny.write_checkpoint(tmp_path / "model")
    with LLM(str(folder), dtype="bfloat16", **flags) as llm:  # type: ignore[arg-type]
        llm.generate("How many circles?", SamplingParams(temperature=0, max_tokens=5, ignore_eos=True), use_tqdm=False)
        attention = llm._engine.executor._worker.runner.attention
    assert isinstance(attention, CpuAttention) and attention.captured is not None
    assert (attention.captured.num_replayed > 0) is is_replayed
