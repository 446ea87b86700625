"""Log-probabilities of a prompt's own tokens, each given those before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from trifocal.types import Prompt, TokenLogprobs
from trifocal.worker.input_batch import PromptRows, SequenceState
from trifocal.worker.sampler import Sampler

_MOST_ROWS = 256  # of logits at once: a row has 600 kB with a vocabulary of 150,000


def extend_prompt_logprobs(
    state: SequenceState, part: PromptRows, hidden: Tensor, head: Callable[[Tensor], Tensor], sampler: Sampler
) -> None:
    """Append to `state.prompt_logprobs` what the rows of a step tell; `hidden` [n, size] are those of the step.

    A row tells of the token behind it, and nothing where that takes an embedding. `head` makes logits of rows. Raises
    `ValueError` where these are no numbers.
    """
    count, found = state.request.prompt_logprobs, state.prompt_logprobs
    assert count is not None and found is not None
    end = min(part.start + part.num, state.num_prompt_tokens - 1)
    behind = np.arange(part.start, end) + 1
    told = behind[~_takes_embed(state.request.prompt, part.start + 1, end + 1)]
    entries: dict[int, TokenLogprobs] = {}
    for places in _slices(told):
        rows = hidden[(places - 1 - part.start + part.first_row).tolist()]
        chosen = state.token_ids[places].tolist()
        entries |= zip(places.tolist(), sampler.logprobs_of(head(rows), chosen, count), strict=True)
    found += [entries.get(place) for place in behind.tolist()]


def _slices(places: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    return (places[low : low + _MOST_ROWS] for low in range(0, len(places), _MOST_ROWS))


def _takes_embed(prompt: Prompt, start: int, end: int) -> NDArray[np.bool_]:
    """Which of the positions `start .. end` take an embedding."""
    takes = np.zeros(end - start, dtype=bool)
    for item in prompt.media:
        span = item.span
        low, high = max(span.offset, start), min(span.end, end)
        if low < high:
            inside = True if span.is_embed is None else span.is_embed[low - span.offset : high - span.offset]
            takes[low - start : high - start] = inside
    return takes
