"""Batched sampling: logits processors, filters and a reproducible choice.

Order and meaning as in vLLM: a sequence's logits processors, then arg-max for greedy rows; temperature, min_p, top_k,
top_p and a draw for the others. Log-probabilities are those of the raw logits. A sequence with drafts has a row for
each of them, which chooses as if those before had been generated.
The draw uses one uniform number from a counter-based generator (Philox, Salmon et al. 2011) keyed by (request seed,
output index): a row's result depends on nothing else in the batch, and a resumed request continues the same stream.

A device's kernels choose the same tokens as torch does here, bit for bit, though they sort nothing and sum in another
order. For that the arithmetic is defined in full. A token's level is the base-2 logarithm of its probability relative
to the most likely token's: (logit - largest logit) * (log2(e) / temperature), rounded to float32 after each operation,
and -64 at least. Its weight is 2**level by a polynomial in float32, cut to whole multiples of 2**-42, so that sums of
weights are exact: less than that is no weight, in a vocabulary of 150,000 at most 4e-8 of all together. The order of
tokens, for top_k and top_p, is that of levels, and of ids among equal ones. top_p and the uniform number are exact
shares of those sums.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trifocal.kernels.base import TORCH, Draws, Kernels, Likely
from trifocal.log import get_logger
from trifocal.types import TokenLogprobs
from trifocal.worker.input_batch import SequenceState
from trifocal.worker.logits_processors import apply_all

logger = get_logger(__name__)
_KEY_MASK = (1 << 64) - 1
_BLOCK = 128  # tokens whose largest is found first, see `_argmax`
_MOST_VOCAB = 1 << 20  # the sum of as many weights has room in 64 bits
_LOG2_E = math.log2(math.e)
_LOWEST = -64.0  # of levels
_UNIT = float(1 << 42)  # the weight of the most likely token
_WHOLE = 1 << 53  # 1 in the units of top_p and of noise
# 2**x from -0.5 to 0.5, the highest power first (Cephes, Moshier 1992).
_POLYNOMIAL = (1.5353362e-4, 1.3398874e-3, 9.6184374e-3, 5.5503325e-2, 2.4022648e-1, 6.9314720e-1, 1.0)
_INVALID = "the model produced no valid probabilities (NaN or infinity)"
_NOTHING_LEFT = f"{_INVALID}, or the request's parameters exclude every token"
FAILED = "the next token could not be chosen; the server's log says more"


class Row(NamedTuple):
    """A row of logits: it chooses the token behind a sequence's first `num_drafts` drafts."""

    state: SequenceState
    num_drafts: int = 0


@dataclass(frozen=True)
class Sampled:
    """One token per row; that of a row with an error is a filler. Errors and log-probabilities go by row."""

    token_ids: list[int]
    errors: dict[int, str] = field(default_factory=dict)
    logprobs: dict[int, TokenLogprobs] = field(default_factory=dict)


class Sampler:
    """Chooses tokens. It keeps nothing from one step to the next."""

    def __init__(self, num_vocab: int, kernels: Kernels = TORCH) -> None:
        """Raises `ValueError` for a vocabulary of more than a million tokens."""
        if num_vocab > _MOST_VOCAB:
            raise ValueError(f"a vocabulary of {num_vocab} tokens; sampling knows at most {_MOST_VOCAB}")
        self.num_vocab = num_vocab  # ids beyond the tokenizer exist in padded heads and are never chosen
        self._kernels = kernels

    def __call__(self, logits: Tensor, states: Sequence[SequenceState]) -> Sampled:
        """logits float32 [m, vocab], one row per state and draft. The logits are changed in place."""
        rows = [Row(state, num) for state in states for num in range(1 + len(state.drafts))]
        params = [row.state.request.params for row in rows]
        raw, errors = self._process(logits, rows)
        chosen, largest = self._choose(logits, self._draws(rows, logits.device))
        valid = torch.isfinite(largest).tolist()
        token_ids = [int(t) if ok else 0 for t, ok in zip(chosen.tolist(), valid, strict=True)]
        asked = [i for i, p in enumerate(params) if p.logprobs is not None and valid[i]]
        for i, values in raw.items():
            logits[i] = values
        counts = [self.num_vocab if params[i].logprobs == -1 else params[i].logprobs or 0 for i in asked]
        facts = self._facts(logits, asked, [token_ids[i] for i in asked], counts)
        for i, each in zip(asked, facts, strict=True):
            valid[i] = math.isfinite(each.largest)
        for i, ok in enumerate(valid):
            if not ok:
                errors.setdefault(i, _NOTHING_LEFT if rows[i].state.processors else _INVALID)
        return Sampled(
            token_ids=[token_id if ok else 0 for token_id, ok in zip(token_ids, valid, strict=True)],
            errors=errors,
            logprobs={i: _logprobs(each, token_ids[i]) for i, each in zip(asked, facts, strict=True) if valid[i]},
        )

    def logprobs_of(self, logits: Tensor, token_ids: Sequence[int], count: int) -> list[TokenLogprobs]:
        """Of given tokens, one a row, and of the `count` most likely ones beside; logits float32 [m, vocab].

        Raises `ValueError` for logits that are no numbers.
        """
        rows, num_vocab = range(len(token_ids)), self.num_vocab
        known = [token_id if token_id < num_vocab else 0 for token_id in token_ids]
        facts = self._facts(logits, list(rows), known, [num_vocab if count == -1 else count for _ in rows])
        if not all(math.isfinite(each.largest) for each in facts):
            raise ValueError(_INVALID)
        facts = [  # a token that the tokenizer does not know is never chosen, and has no probability
            each if token_id < num_vocab else replace(each, own=-math.inf, rank=num_vocab)
            for each, token_id in zip(facts, token_ids, strict=True)
        ]
        return [_logprobs(each, token_id) for each, token_id in zip(facts, token_ids, strict=True)]

    def _process(self, logits: Tensor, rows: Sequence[Row]) -> tuple[dict[int, Tensor], dict[int, str]]:
        """Apply what sequences have of processors. Returns raw rows that log-probabilities need, and errors, by row."""
        raw: dict[int, Tensor] = {}
        errors: dict[int, str] = {}
        for first, (state, num_before) in enumerate(rows):
            if not state.processors or num_before:
                continue
            own = range(first, first + 1 + len(state.drafts))
            if state.request.params.logprobs is not None:
                raw |= {i: logits[i].clone() for i in own}
            try:
                apply_all(state.processors, logits[own.start : own.stop], state.drafts)
            except Exception:
                logger.exception("a logits processor failed for request %s", state.request.request_id)
                errors |= dict.fromkeys(own, FAILED)
        return raw, errors

    def _draws(self, rows: Sequence[Row], device: torch.device) -> Draws | None:
        """None: all rows are greedy."""
        params = [row.state.request.params for row in rows]
        if all(p.is_greedy for p in params):
            return None
        vocab = self.num_vocab
        # Beyond any use of it, a temperature must not turn -infinity into 0.
        scales = [0.0 if p.is_greedy else max(_LOG2_E / p.temperature, 1e-30) for p in params]
        floors = [math.log2(p.min_p) if p.min_p > 0 else -math.inf for p in params]
        top_ks = [min(p.top_k, vocab) if p.top_k > 0 else vocab for p in params]
        top_ps = [math.ceil(p.top_p * _WHOLE) for p in params]
        noises = [0 if p.is_greedy else int(_uniform(*row) * _WHOLE) for p, row in zip(params, rows, strict=True)]
        floats = torch.tensor([scales, floors], dtype=torch.float32, device=device)
        return Draws(*floats, *torch.tensor([top_ks, top_ps, noises], device=device))

    def _choose(self, logits: Tensor, draws: Draws | None) -> tuple[Tensor, Tensor]:
        found = self._kernels.choose(logits, self.num_vocab, draws)
        if found is not None:
            return found
        logits[:, self.num_vocab :] = -torch.inf
        chosen, largest = _argmax(logits)
        if draws is not None:
            drawn = draws.scale > 0
            rows = logits if bool(drawn.all()) else logits[drawn]
            chosen[drawn] = _draw(rows[:, : self.num_vocab], largest[drawn], draws.of(drawn))
        return chosen, largest

    def _facts(self, logits: Tensor, rows: list[int], chosen: list[int], counts: list[int]) -> list[Likely]:
        if not rows:
            return []
        found = self._kernels.likely(logits, self.num_vocab, rows, chosen, counts)
        if found is not None:
            return found
        return [
            _likely(logits[row, : self.num_vocab], token_id, count)
            for row, token_id, count in zip(rows, chosen, counts, strict=True)
        ]

    def one_by_one(self, logits: Tensor, states: Sequence[SequenceState]) -> Sampled:
        """The same by a call for each sequence, in which an exception is the sequence's own error."""
        found, first = Sampled([]), 0
        for state in states:
            num_rows = 1 + len(state.drafts)
            each = self._alone(logits[first : first + num_rows], state)
            found.token_ids.extend(each.token_ids)
            found.errors.update({first + i: error for i, error in each.errors.items()})
            found.logprobs.update({first + i: logprobs for i, logprobs in each.logprobs.items()})
            first += num_rows
        return found

    def _alone(self, rows: Tensor, state: SequenceState) -> Sampled:
        try:
            return self(rows, [state])
        except Exception:
            logger.exception("no token could be chosen for request %s", state.request.request_id)
            return Sampled([0] * len(rows), dict.fromkeys(range(len(rows)), FAILED))


def _argmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The first of the largest of each row, int64 [m], and how large it is: no number if one in the row is none.

    On a CPU torch's own looks at one number at a time.
    """
    missing = -logits.shape[1] % _BLOCK
    padded = F.pad(logits, (0, missing), value=-torch.inf) if missing else logits
    blocks = padded.reshape(len(logits), -1, _BLOCK)
    largest, best = blocks.amax(dim=-1).max(dim=-1)
    inside = blocks[torch.arange(len(logits), device=logits.device), best].argmax(dim=-1)
    return best * _BLOCK + inside, largest


def _draw(logits: Tensor, largest: Tensor, draws: Draws) -> Tensor:
    """One token for each row of `logits` [m, vocab]; returns int64 [m]."""
    levels = _levels(logits, largest, draws)
    if bool((draws.top_k < logits.shape[1]).any() or (draws.top_p < _WHOLE).any()):
        levels = _top_k_top_p(levels, draws)
    cumulative = _weights(levels).cumsum(dim=-1)
    targets = [
        [total * noise // _WHOLE] for total, noise in zip(cumulative[:, -1].tolist(), draws.noise.tolist(), strict=True)
    ]
    bounds = torch.tensor(targets, device=logits.device)
    return torch.searchsorted(cumulative, bounds, right=True).squeeze(-1)


def _levels(logits: Tensor, largest: Tensor, draws: Draws) -> Tensor:
    """Base-2 logarithms of probabilities, from 0 for the most likely token down to `_LOWEST`, which is impossible."""
    levels = ((logits - largest[:, None]) * draws.scale[:, None]).clamp_(min=_LOWEST)
    return levels.masked_fill_(levels < draws.floor[:, None], _LOWEST)


def _weights(levels: Tensor) -> Tensor:
    """Probabilities as whole numbers, int64: 2**42 for the most likely token."""
    whole = levels.round()
    rest = levels - whole
    power = torch.full_like(rest, _POLYNOMIAL[0])
    for factor in _POLYNOMIAL[1:]:
        power = power * rest + factor
    exponents = ((whole.to(torch.int32) + 127) << 23).view(torch.float32)
    return (power * exponents * _UNIT).to(torch.int64)


def _top_k_top_p(levels: Tensor, draws: Draws) -> Tensor:
    """Make impossible what top_k, then top_p leave out. Of equally likely tokens the lower ids come first."""
    vocab = levels.shape[1]
    ordered, index = levels.sort(dim=-1, descending=True, stable=True)
    possible = torch.arange(vocab, device=levels.device) < draws.top_k[:, None]
    weights = _weights(ordered) * possible
    cumulative = weights.cumsum(dim=-1)
    limits = [
        [-(-total * top_p // _WHOLE)]
        for total, top_p in zip(cumulative[:, -1].tolist(), draws.top_p.tolist(), strict=True)
    ]
    before = cumulative - weights  # mass of the more likely ones: the token that crosses top_p is kept
    possible &= (before < torch.tensor(limits, device=levels.device)) | (draws.top_p >= _WHOLE)[:, None]
    return torch.full_like(levels, _LOWEST).scatter_(1, index, ordered.where(possible, _LOWEST))


def _uniform(state: SequenceState, num_drafts: int) -> float:
    counter = [0, 0, 0, state.num_output_tokens + num_drafts]
    generator = np.random.Philox(key=state.request.seed & _KEY_MASK, counter=counter)
    return float(np.random.Generator(generator).random())


def _likely(row: Tensor, chosen: int, count: int) -> Likely:
    """See `Likely`; row [vocab]."""
    most = row.amax()
    largest = float(most)
    if not math.isfinite(largest):
        return Likely(largest, 0, 0.0, 0, [], [])
    levels = ((row - most) * torch.tensor(_LOG2_E, dtype=row.dtype, device=row.device)).clamp_(min=_LOWEST)
    own = row[chosen]
    values, ids = row.sort(descending=True, stable=True) if count else (row[:0], row[:0])
    return Likely(
        largest=largest,
        total=int(_weights(levels).sum()),
        own=float(own),
        rank=int((row > own).sum()) + 1,
        values=values[:count].tolist(),
        ids=ids[:count].tolist(),
    )


def _logprobs(row: Likely, chosen: int) -> TokenLogprobs:
    """Of the chosen token, then of the most likely ones; those without any probability are left out."""
    total = row.largest + math.log(row.total / _UNIT)
    num_top = sum(value > -math.inf for value in row.values)
    logprobs = [value - total for value in (row.own, *row.values[:num_top])]
    return TokenLogprobs(
        token_ids=[chosen, *row.ids[:num_top]],
        logprobs=[max(value, -1e30) for value in logprobs],
        rank=row.rank,
    )
