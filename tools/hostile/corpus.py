"""All hostile inputs, in a fixed order."""

from __future__ import annotations

import random
from collections import defaultdict

from tools.hostile import bodies, clips, pictures, urls
from tools.hostile.case import Case


def all_cases() -> list[Case]:
    """Every case; their names differ."""
    return [case for module in (pictures, clips, urls, bodies) for case in module.cases()]


def some_cases(number: int, seed: int) -> list[Case]:
    """`number` quick ones or a few more, as many of each kind as their share, at least two."""
    chance, kinds = random.Random(seed), defaultdict(list)
    for case in all_cases():
        if not case.is_slow:
            kinds[case.kind].append(case)
    total = sum(map(len, kinds.values()))
    return [
        case
        for cases in kinds.values()
        for case in chance.sample(cases, min(len(cases), max(2, -(-number * len(cases) // total))))
    ]
