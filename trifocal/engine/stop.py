"""Stop strings in a stream: text that may still turn out to be the start of one is held back."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Feed text as it comes; what is safe to show comes out. `matched` is the string that ended it, if one did."""

    def __init__(self, strings: Sequence[str], *, include_in_output: bool = False) -> None:
        self._strings = list(strings)
        self._include_in_output = include_in_output
        self._held = ""
        self.matched: str | None = None

    def feed(self, text: str) -> str:
        """Add text; returns what can be shown now. After a match nothing more comes out."""
        if self.matched is not None:
            return ""
        self._held += text
        found = [(self._held.find(stop), stop) for stop in self._strings]
        found = [(at, stop) for at, stop in found if at >= 0]
        if found:
            at, self.matched = min(found, key=lambda hit: (hit[0], -len(hit[1])))
            end = at + len(self.matched) if self._include_in_output else at
            return self._show(end)
        return self._show(len(self._held) - self._num_held())

    def pass_through(self, text: str) -> str:
        """Text that comes too early to end the sequence, even if a stop string is in it."""
        return self._show(len(self._held)) + text

    def flush(self) -> str:
        """The sequence ended: whatever is held back was not a stop string."""
        return self._show(len(self._held)) if self.matched is None else ""

    def _show(self, end: int) -> str:
        shown, self._held = self._held[:end], self._held[end:]
        return shown

    def _num_held(self) -> int:
        """Length of the longest end of the text that begins a stop string."""
        for length in range(min(len(self._held), max(map(len, self._strings), default=1) - 1), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._strings):
                return length
        return 0
