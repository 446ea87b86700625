"""The built-in model, which was trained, in AWQ: nearly as good as before, and better than by plain rounding."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.quantize import compare, held_out, load
from tools.demo_model.evaluate import evaluate
from tools.demo_model.items import Item, held_out_items
from trifocal.llm import LLM
from trifocal.quantize.awq import quantize
from trifocal.quantize.samples import built_in
from trifocal.sampling_params import SamplingParams

pytestmark = pytest.mark.slow
DEMO = Path(__file__).parents[2] / "trifocal" / "demo" / "model"
PER_KIND = 40


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("quantized") / "awq"
    assert quantize(DEMO, out, built_in(), progress=False).group == 64
    return out


class OfflineBackend:
    """Our own engine, in the type that the folder asks for."""

    def __init__(self, folder: Path, quantization: str | None) -> None:
        self.folder, self.quantization = folder, quantization

    def answers(self, items: list[Item]) -> list[str]:
        params = SamplingParams(temperature=0, max_tokens=80)
        with LLM(str(self.folder), quantization=self.quantization) as llm:
            outputs = llm.chat([item.messages() for item in items], params, use_tqdm=False)
        return [output.outputs[0].text for output in outputs]


def accuracy(folder: Path, items: list[Item], quantization: str | None = None) -> float:
    outcomes = evaluate(OfflineBackend(folder, quantization), items)
    return sum(outcome.is_right for outcome in outcomes) / len(outcomes)


def test_accuracy(quantized: Path) -> None:
    """On held-out questions of every kind: at most one point lost in int8, two in four bits."""
    items = list(held_out_items(1, PER_KIND))
    before, awq = accuracy(DEMO, items), accuracy(quantized, items)
    int8, int4 = accuracy(DEMO, items, "int8"), accuracy(DEMO, items, "int4")
    print(f"right of {len(items)}: {before:.4f} before, {awq:.4f} in AWQ, {int8:.4f} in int8, {int4:.4f} in int4")
    assert before > 0.8
    assert int8 > before - 0.01
    assert min(awq, int4) > before - 0.02


def test_better_than_plain_rounding(quantized: Path, tmp_path: Path) -> None:
    """Nearer to the original's probabilities, over documents and pictures together."""
    quantize(DEMO, tmp_path / "plain", None, progress=False)
    sums = compare(DEMO, {"plain": load(tmp_path / "plain"), "awq": load(quantized)}, held_out(items=4, documents=12))
    plain, awq = (sum(sums[kind, name].divergence for kind in ("text", "pictures")) for name in ("plain", "awq"))
    assert awq < plain
