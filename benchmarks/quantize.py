"""What few bits cost: KL divergence from the original on held-out text and pictures, for every way to keep weights.

    python -m benchmarks.quantize [FOLDER ...] [--tokens 4096] [--group-size 64] [--items 4] [--documents 12]

Without a folder: the built-in model, and SmolLM2 as the language model of an InternVL folder where `tools.smollm2` has
written it to .cache/smollm2/model. Each is quantized to AWQ's format twice, by plain rounding to the nearest and by
`trifocal quantize` with its built-in samples, and rounded while loading to int8 and int4, with activations rounded as
`--quantization` does it and with activations left as they are. Held-out text are paragraphs of this repository's
documents, held-out pictures the questions that the built-in model is judged by (`tools.demo_model.evaluate`), with
their answers. All models compute in float32 but for what is rounded. Expected: AWQ has less than plain rounding on
both; exits with 1 if not.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tools.demo_model.items import held_out_items
from trifocal.config.engine import EngineArgs, resolve
from trifocal.kernels.base import TORCH, Kernels
from trifocal.kernels.int4 import Int4Weight
from trifocal.models.base import Model
from trifocal.models.loader import load_model
from trifocal.quantize.awq import quantize
from trifocal.quantize.inputs import build_prompts, embed
from trifocal.quantize.layer import attention_over
from trifocal.quantize.samples import Sample, built_in
from trifocal.types import Prompt

ROOT = Path(__file__).parents[1]
DEFAULT = (ROOT / "trifocal" / "demo" / "model", ROOT / ".cache" / "smollm2" / "model")
KINDS = ("content", "colour", "count", "position", "word", "several_images")
LONGEST = 4096


@dataclass
class Sums:
    """Over tokens."""

    tokens: int = 0
    divergence: float = 0.0
    agreeing: float = 0.0

    def row(self) -> str:
        """Means, for the table."""
        return f"{self.divergence / self.tokens:10.5f}  {100 * self.agreeing / self.tokens:8.2f} %"


def held_out(items: int, documents: int) -> dict[str, list[Sample]]:
    """Samples by kind."""
    files = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    paragraphs = [each for file in files for each in file.read_text(encoding="utf-8").split("\n\n") if len(each) > 400]
    texts = [Sample("document", text=each) for each in paragraphs[:: max(1, len(paragraphs) // documents)][:documents]]
    pictures = []
    for item in held_out_items(1, items, KINDS):
        answer = {"role": "assistant", "content": item.answer}
        pictures.append(Sample(item.kind, messages=[*item.messages(), answer]))
    return {"text": texts, "pictures": pictures}


class WeightsAlone(Kernels):
    """Rounded weights meet activations as they are."""

    def linear_int8(self, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        """Of `Kernels`, without rounding x."""
        return F.linear(x, (weight * scale[:, None]).to(x.dtype), bias)

    def linear_int4_int8(self, x: Tensor, weight: Int4Weight, bias: Tensor | None) -> Tensor:
        """Likewise."""
        return self.linear_int4(x, weight, bias)


def load(folder: Path, quantization: str | None = None, kernels: Kernels = TORCH) -> Model:
    """In float32, whatever its weights are kept in."""
    config = resolve(EngineArgs(model=str(folder), device="cpu", dtype="float32", quantization=quantization))
    return load_model(
        config.model.spec, dtype=torch.float32, device=torch.device("cpu"), load_format="auto", seed=0,
        quantization=config.model.quantization, kernels=kernels,
    )  # fmt: skip


def rounded_while_loading(folder: Path) -> dict[str, Model]:
    """`--quantization int8` and int4, and what of each is due to the weights alone."""
    ways = {"": TORCH, ", weights alone": WeightsAlone()}
    return {f"{bits}{way}": load(folder, bits, kernels) for bits in ("int8", "int4") for way, kernels in ways.items()}


@torch.inference_mode()
def log_probabilities(model: Model, prompt: Prompt, folder: Path) -> Tensor:
    """[tokens, vocabulary]."""
    inputs = embed(model, [prompt], progress=False)
    text = resolve(EngineArgs(model=str(folder), device="cpu")).spec.text
    attention = attention_over(text, inputs.lengths, torch.float32)
    return model.logits(model(inputs.embeds, inputs.positions, attention)).log_softmax(-1)


def compare(folder: Path, models: dict[str, Model], samples: dict[str, list[Sample]]) -> dict[tuple[str, str], Sums]:
    """Sums by kind of sample and name of the other model."""
    config = resolve(EngineArgs(model=str(folder), device="cpu"))
    exact = load(folder)
    sums: dict[tuple[str, str], Sums] = defaultdict(Sums)
    for kind, some in samples.items():
        for sample in some:
            [prompt] = build_prompts(config, [sample], LONGEST)
            expected = log_probabilities(exact, prompt, folder)
            for name, model in models.items():
                given = log_probabilities(model, prompt, folder)
                total = sums[kind, name]
                total.tokens += len(expected)
                total.divergence += float((expected.exp() * (expected - given)).sum())
                total.agreeing += float((expected.argmax(-1) == given.argmax(-1)).sum())
    return sums


def measure(folder: Path, samples: dict[str, list[Sample]], tokens: int, group: int | None) -> bool:
    """Print one model's table; returns whether the scales were worth it everywhere."""
    with tempfile.TemporaryDirectory(prefix="quantize-") as place:
        ways: dict[str, tuple[Path, Iterable[Sample] | None]] = {
            "plain rounding": (Path(place) / "plain", None),
            "AWQ": (Path(place) / "awq", built_in()),
        }
        for out, calibration in ways.values():
            report = quantize(folder, out, calibration, group=group, num_tokens=tokens)
        models = {name: load(out) for name, (out, _) in ways.items()} | rounded_while_loading(folder)
        sums = compare(folder, models, samples)
    print(f"\n{folder}: groups of {report.group}, {report.num_tokens} tokens of calibration")
    print(f"{'held out':10} {'tokens':>7}  {'weights':19} {'KL':>9}  {'same top token':>14}")
    for (kind, name), total in sums.items():
        print(f"{kind:10} {total.tokens:7}  {name:19} {total.row()}")
    return all(sums[kind, "AWQ"].divergence < sums[kind, "plain rounding"].divergence for kind in samples)


def main() -> int:
    """Measure each folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER")
    parser.add_argument("--tokens", type=int, default=4096, help="of calibration")
    parser.add_argument("--group-size", type=int, choices=(128, 64, 32))
    parser.add_argument("--items", type=int, default=4, help="questions about pictures, of each kind")
    parser.add_argument("--documents", type=int, default=12, help="paragraphs of text")
    args = parser.parse_args()
    folders = args.folders or [folder for folder in DEFAULT if folder.is_dir()]
    samples = held_out(args.items, args.documents)
    good = [measure(folder, samples, args.tokens, args.group_size) for folder in folders]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
