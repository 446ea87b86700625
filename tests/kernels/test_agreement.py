"""The built-in model answers held-out questions with kernels as it does without."""

from __future__ import annotations

import pytest

from tests.kernels import isa
from tools.demo_model.agreement import agreement, answers
from tools.demo_model.items import held_out_items
from trifocal.demo.run import MODEL


def test_counting() -> None:
    assert agreement([[1, 2, 3], [4]], [[1, 2], [4]]) == (3, 4)
    assert agreement([[1, 2], [5]], [[9, 2], [5]]) == (2, 3)


@pytest.mark.parametrize("dtype", ["auto", pytest.param("float32", marks=pytest.mark.slow)])
def test_held_out_questions(dtype: str) -> None:
    """A few of each kind; `python -m tools.demo_model.agreement` asks them all."""
    isa.library(isa.NAMES[-1])  # or skip
    items = list(held_out_items(1, 3))
    same, total = agreement(*(answers(items, kernels, str(MODEL), dtype) for kernels in ("0", "1")))
    assert total > 3 * len(items) and same >= 0.995 * total
