"""Replayed steps give what Python's give, bit for bit; what cannot be replayed is not."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tests.kernels import isa
from tests.kernels.decoders import FORMATS, Steps, decoder
from trifocal.kernels.cpu.capture import CpuGraphs, _share
from trifocal.kernels.cpu.library import Library
from trifocal.kernels.cpu.ops import CpuKernels
from trifocal.kernels.graphs import CaptureError
from trifocal.layers.linear import PLAIN
from trifocal.models.decoder import Decoder
from trifocal.models.qwen2 import Qwen2Decoder
from trifocal.models.qwen3 import Qwen3Decoder
from trifocal.platforms.cpu_linear import BlocksLinear


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.fixture(params=isa.EACH_BUT_NEWEST_SLOW)
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Library:
    chosen = isa.library(request.param)
    monkeypatch.setattr("trifocal.attention.cpu.load", lambda: chosen)
    return chosen


@pytest.fixture
def kernels(library: Library) -> CpuKernels:
    return CpuKernels(library)


ROUNDS = [[1], [1, 1, 1], [1], [2, 1], [3], [1], [1, 1, 1], [40]]


@pytest.mark.parametrize("kind", [Qwen2Decoder, Qwen3Decoder])
@torch.inference_mode()
def test_bit_for_bit(library: Library, kernels: CpuKernels, kind: type[Decoder]) -> None:
    for dtype, method in FORMATS:
        made = decoder(kernels, dtype, method, kind)
        eager, captured = Steps(made, dtype, library), Steps(made, dtype, library, (1, 3))
        for seed, query_lens in enumerate(ROUNDS):
            assert torch.equal(captured.step(seed, query_lens), eager.step(seed, query_lens)), (dtype, method)
        assert torch.equal(captured.attention.cache.keys, eager.attention.cache.keys)
        assert (captured.graphs.num_replayed, eager.graphs.num_replayed) == (7, 0), (dtype, method)


@torch.inference_mode()
def test_another_number_of_threads_is_another_recording(library: Library, kernels: CpuKernels) -> None:
    steps = Steps(decoder(kernels, torch.bfloat16, BlocksLinear), torch.bfloat16, library, (1,))
    first = steps.step(0, [1])
    torch.set_num_threads(1)
    assert torch.equal(steps.step(0, [1]), first)
    assert (steps.graphs.num_replayed, len(steps.graphs._recordings)) == (2, 2)


@torch.inference_mode()
def test_captured_ahead(library: Library, kernels: CpuKernels) -> None:
    """Nothing is computed meanwhile, Python runs no layer afterwards, and all recordings use the same memory."""
    for dtype, method in ((torch.bfloat16, BlocksLinear), (torch.float32, PLAIN)):
        made = decoder(kernels, dtype, method)
        eager, steps = Steps(made, dtype, library), Steps(made, dtype, library, (1, 2, 3))
        keys = steps.attention.cache.keys.clone()
        steps.graphs.capture(torch.device("cpu"))
        recordings = steps.graphs._recordings
        assert steps.graphs.num_replayed == 0
        assert [shape[0] for _, (shape, _), *_ in recordings] == [3, 2, 1]  # type: ignore[misc]
        assert torch.equal(steps.attention.cache.keys, keys)
        assert len({tape.memory.data_ptr() for tape in recordings.values()}) == 1  # type: ignore[attr-defined]
        for seed, query_lens in enumerate(ROUNDS):
            assert torch.equal(steps.step(seed, query_lens), eager.step(seed, query_lens))
        assert (len(recordings), steps.graphs.num_replayed) == (3, 7)


@torch.inference_mode()
def test_arithmetic_in_place_is_seen(library: Library, kernels: CpuKernels) -> None:
    """It changes a tensor that lies where it lay: a view all the same."""

    def layers(x: Tensor) -> Tensor:
        return kernels.rms_norm(x, weight, 1e-6).add_(1)

    weight = torch.ones(16)
    with pytest.raises(CaptureError, match="they call torch's add_, which"):
        CpuGraphs(library).capture(layers, torch.ones(2, 16))


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
