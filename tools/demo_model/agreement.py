"""Compare the CPU's kernels with plain torch on the held-out set: `python -m tools.demo_model.agreement`.

Both answer the same questions greedily through `LLM`. A token agrees when the other answer has the same in its place.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from tools.demo_model.items import KINDS, Item, held_out_items
from trifocal.demo.run import MODEL
from trifocal.llm import LLM
from trifocal.sampling_params import SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=80)
SWITCH = "TRIFOCAL_CPU_KERNELS"


def answers(items: Sequence[Item], kernels: str, model: str, dtype: str) -> list[list[int]]:
    """Token ids of every answer, computed with or (`kernels` 0) without kernels."""
    before = os.environ.get(SWITCH)
    os.environ[SWITCH] = kernels
    try:
        with LLM(model, dtype=dtype) as llm:
            outputs = llm.chat([item.messages() for item in items], GREEDY, use_tqdm=False)
    finally:
        if before is None:
            del os.environ[SWITCH]
        else:
            os.environ[SWITCH] = before
    return [list(output.outputs[0].token_ids) for output in outputs]


def agreement(one: Sequence[Sequence[int]], other: Sequence[Sequence[int]]) -> tuple[int, int]:
    """(tokens that agree, tokens): an answer counts as many as the longer of the two has."""
    same = sum(a == b for first, second in zip(one, other, strict=True) for a, b in zip(first, second, strict=False))
    return same, sum(max(len(first), len(second)) for first, second in zip(one, other, strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(description="Agreement of kernels and plain torch, token for token.")
    parser.add_argument("--model", default=str(MODEL), help="checkpoint folder")
    parser.add_argument("--dtype", default="auto", help="auto, bfloat16 or float32")
    parser.add_argument("--kernels", default="1", help=f"value of {SWITCH} to compare with 0: 1 or an instruction set")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--per-kind", type=int, default=200)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    arguments = parser.parse_args()
    items = list(held_out_items(arguments.seed, arguments.per_kind, tuple(arguments.kinds)))
    given = [answers(items, kernels, arguments.model, arguments.dtype) for kernels in ("0", arguments.kernels)]
    same, total = agreement(*given)
    whole = sum(one == other for one, other in zip(*given, strict=True))
    print(f"tokens: {same} of {total} agree, {100 * same / total:.2f} %; whole answers: {whole} of {len(items)}")
    return 0 if same >= 0.995 * total else 1


if __name__ == "__main__":
    sys.exit(main())
