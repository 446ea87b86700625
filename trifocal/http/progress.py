"""Whether the engine moves: what `/health` tells beyond that a process exists."""

from __future__ import annotations

from time import monotonic


class Progress:
    """Seconds since the engine last gave a sign of work while it had some. Signs are steps and deltas."""

    def __init__(self) -> None:
        self._num_busy = 0
        self._num_steps = -1
        self._moved = monotonic()

    def begin(self) -> None:
        """One more request is submitted."""
        if self._num_busy == 0:
            self.moved()
        self._num_busy += 1

    def end(self) -> None:
        """A request that was submitted has ended."""
        self._num_busy -= 1

    def moved(self) -> None:
        """Something came from the engine."""
        self._moved = monotonic()

    def stalled_s(self, num_steps: int) -> float:
        """Seconds without a sign; `num_steps` is the engine's count of steps as known now."""
        if self._num_busy == 0 or num_steps != self._num_steps:
            self._num_steps = num_steps
            self.moved()
        return monotonic() - self._moved
