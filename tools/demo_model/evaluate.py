"""Ask a model the held-out questions: `python -m tools.demo_model.evaluate`.

    python -m tools.demo_model.evaluate --backend transformers
    python -m tools.demo_model.evaluate --base-url http://127.0.0.1:8000/v1 --model NAME

An answer counts when it equals the expected one, up to white space at its ends.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tools.demo_model.backends import Backend, ServerBackend, TransformersBackend
from tools.demo_model.items import KINDS, Item, folder_items, held_out_items


@dataclass(frozen=True)
class Outcome:
    """One item with the answer a model gave."""

    item: Item
    given: str

    @property
    def is_right(self) -> bool:
        return self.given.strip() == self.item.answer


def evaluate(backend: Backend, items: Sequence[Item]) -> list[Outcome]:
    answers = backend.answers(items)
    return [Outcome(item, given) for item, given in zip(items, answers, strict=True)]


def accuracy_by_kind(outcomes: Sequence[Outcome]) -> dict[str, tuple[int, int]]:
    """(right, asked) for every kind, in the order the kinds were asked."""
    table: dict[str, tuple[int, int]] = {}
    for outcome in outcomes:
        right, asked = table.get(outcome.item.kind, (0, 0))
        table[outcome.item.kind] = (right + outcome.is_right, asked + 1)
    return table


def _backend(arguments: argparse.Namespace) -> Backend:
    if arguments.base_url is not None:
        return ServerBackend(arguments.base_url, arguments.model, arguments.concurrency)
    return TransformersBackend(Path(arguments.model))


def main() -> int:
    parser = argparse.ArgumentParser(description="Accuracy of a demonstration model by kind of question.")
    parser.add_argument("--backend", choices=("transformers", "server"), default=None, help="default: by --base-url")
    parser.add_argument("--base-url", help="an OpenAI API root, e.g. http://127.0.0.1:8000/v1")
    parser.add_argument("--model", default="trifocal/demo/model", help="checkpoint folder, or the served name")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--per-kind", type=int, default=200)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--samples", type=Path, help="ask the questions of this sample folder instead")
    parser.add_argument("--concurrency", type=int, default=8, help="requests in flight")
    parser.add_argument("--json", type=Path, help="write the table and the wrong answers here")
    parser.add_argument("--show-wrong", type=int, default=0, metavar="N", help="print N wrong answers of each kind")
    arguments = parser.parse_args()
    if (arguments.backend == "server") != (arguments.base_url is not None) and arguments.backend is not None:
        parser.error("--base-url goes with --backend server, and only with it")
    torch.set_num_threads(2)
    if arguments.samples is not None:
        items = folder_items(arguments.samples)
    else:
        items = list(held_out_items(arguments.seed, arguments.per_kind, tuple(arguments.kinds)))
    outcomes = evaluate(_backend(arguments), items)
    table = accuracy_by_kind(outcomes)
    for kind, (right, asked) in table.items():
        print(f"{kind:16} {right:5} of {asked:5}  {100 * right / asked:6.1f} %")
        wrong = [outcome for outcome in outcomes if outcome.item.kind == kind and not outcome.is_right]
        for outcome in wrong[: arguments.show_wrong]:
            print(f"    {outcome.item.question!r}: {outcome.given!r} instead of {outcome.item.answer!r}")
    if arguments.json is not None:
        document = {
            "seed": arguments.seed,
            "accuracy": {kind: right / asked for kind, (right, asked) in table.items()},
            "asked": {kind: asked for kind, (_, asked) in table.items()},
            "wrong": [
                {"kind": one.item.kind, "question": one.item.question, "answer": one.item.answer, "given": one.given}
                for one in outcomes
                if not one.is_right
            ],
        }
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0 if arguments.samples is None or all(outcome.is_right for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
