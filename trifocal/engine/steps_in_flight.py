"""Steps whose results are not in yet: what each of them computes, and what goes wrong with them if one fails."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from trifocal.engine.sequence import Sequence
from trifocal.types import StepResult


class Planned(NamedTuple):
    """A sequence as a plan has it. Preemption and release give the sequence a new list: `block_ids` stays as it was.

    `ends` says that the sequence ends with this step though it samples nothing.
    """

    seq: Sequence
    start: int
    end: int
    block_ids: list[int]
    num_sampled_rows: int
    ends: bool

    def shared_blocks(self) -> list[tuple[int, bytes]]:
        """Its full blocks, each with the hash under which others may take it."""
        return list(zip(self.block_ids, self.seq.block_hashes, strict=False))

    def first_spoilt(self, failed_media: Collection[bytes], block_size: int) -> list[int]:
        """First block that was filled without a picture that belongs there, if one was."""
        spans = (item.span for item in self.seq.media if item.content_hash in failed_media)
        inside = [span.offset for span in spans if span.offset < self.end and span.end > self.start]
        return [max(self.start, offset) // block_size for offset in inside[:1]]


class StepsInFlight:
    """Every step from its plan to its result; sequences stay known here when they are aborted meanwhile."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._steps: dict[int, dict[str, Planned]] = {}

    def __bool__(self) -> bool:
        return bool(self._steps)

    def add(self, step_id: int, planned: dict[str, Planned]) -> None:
        self._steps[step_id] = planned

    def remove(self, step_id: int) -> dict[str, Planned]:
        """The step's result is in."""
        return self._steps.pop(step_id)

    def take_spoilt(self, result: StepResult) -> tuple[dict[Sequence, str], set[tuple[int, bytes]]]:
        """What the oldest step, whose `result` it is, spoilt: sequences with their messages, blocks with their hashes.

        A sequence without its picture has written wrong KV. Others may have taken that as their prefix, in the same
        step or in one planned since, and have written wrong KV themselves. Later steps forget them all.
        """
        errors, failed_media = dict(result.errors), result.failed_media
        spoilt: dict[Sequence, str] = {}
        reasons: dict[tuple[int, bytes], str] = {}
        for step_id in sorted(self._steps):
            for request_id, planned in self._steps[step_id].items():
                blocks = planned.shared_blocks()
                firsts = [index for index, block in enumerate(blocks) if block in reasons][:1]
                if firsts:
                    spoilt.setdefault(planned.seq, reasons[blocks[firsts[0]]])
                if request_id in errors:
                    spoilt[planned.seq] = errors[request_id]
                    firsts += planned.first_spoilt(failed_media, self._block_size)
                if firsts:
                    reasons |= dict.fromkeys(blocks[min(firsts) :], spoilt[planned.seq])
            errors.clear()  # of the oldest step only
        for step in list(self._steps.values())[1:]:
            for request_id in [key for key, planned in step.items() if planned.seq in spoilt]:
                del step[request_id]
        return spoilt, set(reasons)
