"""The built-in model, which was trained, in AWQ: nearly as good as before, and better than by plain rounding."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.quantize import compare, held_out
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

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def answers(self, items: list[Item]) -> list[str]:
        params = SamplingParams(temperature=0, max_tokens=80)
        with LLM(str(self.folder)) as llm:
            outputs = llm.chat([item.messages() for item in items], params, use_tqdm=False)
        return [output.outputs[0].text for output in outputs]


def accuracy(folder: Path, items: list[Item]) -> float:
    outcomes = evaluate(OfflineBackend(folder), items)
    return sum(outcome.is_right for outcome in outcomes) / len(outcomes)


def test_accuracy(quantized: Path) -> None:
    """On held-out questions of every kind: at most two points lost."""
    items = list(held_out_items(1, PER_KIND))
    before, after = accuracy(DEMO, items), accuracy(quantized, items)
    print(f"right of {len(items)}: {before:.4f} before, {after:.4f} in AWQ")
    assert before > 0.8
    assert after > before - 0.02


def test_better_than_plain_rounding(quantized: Path, tmp_path: Path) -> None:
    """Nearer to the original's probabilities, on text and on pictures."""
    quantize(DEMO, tmp_path / "plain", None, progress=False)
    sums = compare(DEMO, {"plain": tmp_path / "plain", "awq": quantized}, held_out(items=3, documents=8))
    for kind in ("text", "pictures"):
        assert sums[kind, "awq"].divergence < 0.95 * sums[kind, "plain"].divergence
