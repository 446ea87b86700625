"""Which replica takes a request."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from trifocal.engine.replica import Replica
from trifocal.types import Prompt

# Called with a prompt and the replicas that are not given up, at least one. All choices of a request go to its answer.
Router = Callable[[Prompt, Sequence[Replica]], Replica]


def first_ready(prompt: Prompt, replicas: Sequence[Replica]) -> Replica:
    """The first replica whose engine runs; the first of all if none does, where the request waits."""
    return next((replica for replica in replicas if replica.is_ready), replicas[0])
