"""What guesses tokens ahead. None is installed yet; `ModelRunner.drafter` is where one belongs."""

from __future__ import annotations

from typing import Protocol

from trifocal.worker.input_batch import SequenceState


class Drafter(Protocol):
    """Guesses change no answer: a draft is kept where the model would have chosen the same token."""

    def draft(self, state: SequenceState, most: int) -> list[int]:
        """Up to `most` tokens that may come next. What this raises costs the sequence its drafts, and nothing else."""
