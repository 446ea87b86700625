"""Turns: one very long prompt does not slow down everybody who is being answered. Policy only."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

from trifocal.engine.sequence import Sequence
from trifocal.engine.steps_in_flight import Planned

FREE_STEPS = 2  # a prompt fills so many steps before it takes turns
REST = 2.5  # times as long as its step it then leaves to others: their time per token grows by less than half


class Turns:
    """When a sequence whose prompt fills step after step (a hundred pictures, a book) may have its next one.

    Each sequence rests on its own account: with many long prompts at once, others fill the steps, and nothing is lost.
    Time is that of steps computed, in seconds.
    """

    def __init__(self, step_tokens: int) -> None:
        self._free_tokens = FREE_STEPS * step_tokens
        self._clock = 0.0
        self._rests_until: dict[Sequence, float] = {}

    def is_resting(self, seq: Sequence) -> bool:
        """Whether its next step is the others'."""
        return self._rests_until.get(seq, 0.0) > self._clock

    def begin(self, planned: Iterable[Planned]) -> None:
        """A step is about to run. How long one takes is not known until its result is in."""
        for seq, start, end, *_ in planned:
            if start >= self._free_tokens and end < seq.num_prompt_tokens:
                self._rests_until[seq] = inf

    def end(self, planned: Iterable[Planned], seconds: float) -> None:
        """The step took so long."""
        self._clock += seconds
        for seq, *_ in planned:
            if self._rests_until.get(seq) == inf:
                self._rests_until[seq] = self._clock + REST * seconds

    def forget(self, seq: Sequence) -> None:
        """It ended, or starts again."""
        self._rests_until.pop(seq, None)
