"""Batched sampling: penalties, biases, filters and a reproducible choice.

Order and meaning as in vLLM: logit bias and min_tokens, penalties, then arg-max for greedy rows; temperature, min_p,
top_k, top_p and a draw for the others. Log-probabilities are those of the raw logits.
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
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trifocal.kernels.base import TORCH, Draws, Kernels, Likely
from trifocal.log import get_logger
from trifocal.sampling_params import SamplingParams
from trifocal.types import TokenLogprobs
from trifocal.worker.input_batch import SequenceState

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


@dataclass(frozen=True)
class Sampled:
    """One token per row; that of a row with an error is a filler. Errors and log-probabilities go by row."""

    token_ids: list[int]
    errors: dict[int, str] = field(default_factory=dict)
    logprobs: dict[int, TokenLogprobs] = field(default_factory=dict)


class Sampler:
    """Chooses tokens. It keeps token counts of the sequences that need them (penalties)."""

    def __init__(self, num_vocab: int, kernels: Kernels = TORCH) -> None:
        """Raises `ValueError` for a vocabulary of more than a million tokens."""
        if num_vocab > _MOST_VOCAB:
            raise ValueError(f"a vocabulary of {num_vocab} tokens; sampling knows at most {_MOST_VOCAB}")
        self.num_vocab = num_vocab  # ids beyond the tokenizer exist in padded heads and are never chosen
        self._kernels = kernels
        self._counts: dict[str, _TokenCounts] = {}

    def forget(self, request_id: str) -> None:
        """Drop what is kept for a sequence."""
        self._counts.pop(request_id, None)

    def __call__(self, logits: Tensor, states: list[SequenceState]) -> Sampled:
        """logits float32 [m, vocab], one row per state. The logits are changed in place."""
        params = [state.request.params for state in states]
        raw = {row: self._adjust(logits[row], state) for row, state in enumerate(states)}
        chosen, largest = self._choose(logits, self._draws(states, logits.device))
        valid = torch.isfinite(largest).tolist()
        token_ids = [int(t) if ok else 0 for t, ok in zip(chosen.tolist(), valid, strict=True)]
        asked = [i for i, p in enumerate(params) if p.logprobs is not None and valid[i]]
        for i in asked:
            if (changed := raw[i]) is not None:
                changed.undo(logits[i])
        counts = [self.num_vocab if params[i].logprobs == -1 else params[i].logprobs or 0 for i in asked]
        facts = self._facts(logits, asked, [token_ids[i] for i in asked], counts)
        for i, each in zip(asked, facts, strict=True):
            valid[i] = math.isfinite(each.largest)
        return Sampled(
            token_ids=[token_id if ok else 0 for token_id, ok in zip(token_ids, valid, strict=True)],
            errors={i: _INVALID for i, ok in enumerate(valid) if not ok},
            logprobs={i: _logprobs(each, token_ids[i]) for i, each in zip(asked, facts, strict=True) if valid[i]},
        )

    def _draws(self, states: list[SequenceState], device: torch.device) -> Draws | None:
        """None: all rows are greedy."""
        params = [state.request.params for state in states]
        if all(p.is_greedy for p in params):
            return None
        vocab = self.num_vocab
        # Beyond any use of it, a temperature must not turn -infinity into 0.
        scales = [0.0 if p.is_greedy else max(_LOG2_E / p.temperature, 1e-30) for p in params]
        floors = [math.log2(p.min_p) if p.min_p > 0 else -math.inf for p in params]
        top_ks = [min(p.top_k, vocab) if p.top_k > 0 else vocab for p in params]
        top_ps = [math.ceil(p.top_p * _WHOLE) for p in params]
        noises = [0 if p.is_greedy else int(_uniform(state) * _WHOLE) for p, state in zip(params, states, strict=True)]
        floats = torch.tensor([scales, floors], dtype=torch.float32, device=device)
        return Draws(*floats, *torch.tensor([top_ks, top_ps, noises], device=device))

    def _choose(self, logits: Tensor, draws: Draws | None) -> tuple[Tensor, Tensor]:
        """See `Kernels.choose`."""
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
        """See `Kernels.likely`."""
        if not rows:
            return []
        found = self._kernels.likely(logits, self.num_vocab, rows, chosen, counts)
        if found is not None:
            return found
        return [
            _likely(logits[row, : self.num_vocab], token_id, count)
            for row, token_id, count in zip(rows, chosen, counts, strict=True)
        ]

    def one_by_one(self, logits: Tensor, states: list[SequenceState]) -> Sampled:
        """The same by a call for each row, in which an exception is the row's own error."""
        chosen = [self._alone(row[None], state) for row, state in zip(logits, states, strict=True)]
        return Sampled(
            token_ids=[each.token_ids[0] for each in chosen],
            errors={i: each.errors[0] for i, each in enumerate(chosen) if each.errors},
            logprobs={i: each.logprobs[0] for i, each in enumerate(chosen) if each.logprobs},
        )

    def _alone(self, row: Tensor, state: SequenceState) -> Sampled:
        request_id = state.request.request_id
        self.forget(request_id)  # an exception may have left its tokens half counted; they are counted anew
        try:
            return self(row, [state])
        except Exception:
            logger.exception("no token could be chosen for request %s", request_id)
            return Sampled([0], {0: "the next token could not be chosen; the server's log says more"})

    def _adjust(self, row: Tensor, state: SequenceState) -> _Changed | None:
        """Change the row as the parameters say. Returns what undoes it, if log-probabilities want that."""
        params = state.request.params
        bias = list(params.logit_bias or ())
        stops = state.request.stop_token_ids if state.num_output_tokens < params.min_tokens else ()
        banned = [i for i in stops if i < len(row)]
        counts = self._caught_up(state, row) if _has_penalty(params) else None
        changed = None
        if params.logprobs is not None:
            given = torch.tensor([*bias, *banned], dtype=torch.int64, device=row.device)
            ids = given if counts is None else torch.cat((given, counts.ids))
            changed = _Changed(ids, row[ids])
        if params.logit_bias:
            ids = torch.tensor(bias, dtype=torch.int64, device=row.device)
            row[ids] += torch.tensor(list(params.logit_bias.values()), dtype=row.dtype, device=row.device)
        if banned:
            row[banned] = -torch.inf
        if counts is not None:
            counts.penalize(row, params)
        return changed

    def _caught_up(self, state: SequenceState, row: Tensor) -> _TokenCounts:
        counts = self._counts.get(state.request.request_id)
        if counts is None:
            counts = self._counts[state.request.request_id] = _TokenCounts(state, row)
        counts.catch_up(state)
        return counts


@dataclass(frozen=True)
class _Changed:
    """Logits of a row as they were."""

    ids: Tensor
    values: Tensor

    def undo(self, row: Tensor) -> None:
        row[self.ids] = self.values


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


def _has_penalty(params: SamplingParams) -> bool:
    return params.repetition_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0


class _TokenCounts:
    """Which tokens occurred, prompt included, and how often each was generated."""

    def __init__(self, state: SequenceState, like: Tensor) -> None:
        self._num_seen = 0
        self._generated = torch.zeros_like(like)
        self._occurred = torch.zeros_like(like, dtype=torch.bool)
        self._occurred[torch.from_numpy(state.token_ids[: state.num_prompt_tokens]).to(like.device)] = True
        self.ids = self._occurred.nonzero().squeeze(-1)

    def catch_up(self, state: SequenceState) -> None:
        """Count the tokens generated since the last call."""
        ids = torch.from_numpy(state.output_token_ids[self._num_seen :].copy()).to(self._generated.device)
        self._generated.scatter_add_(0, ids, torch.ones_like(ids, dtype=self._generated.dtype))
        new = ids[~self._occurred[ids]]
        if len(new):
            self._occurred[new] = True
            self.ids = torch.cat((self.ids, torch.from_numpy(np.unique(new.cpu())).to(new.device)))
        self._num_seen = state.num_output_tokens

    def penalize(self, row: Tensor, params: SamplingParams) -> None:
        """Repetition penalty (CTRL, Keskar et al. 2019) over prompt and output; OpenAI's two over the output."""
        scale = params.repetition_penalty
        values = row[self.ids]
        if scale != 1.0:
            values = torch.where(values > 0, values / scale, values * scale)
        if params.frequency_penalty or params.presence_penalty:
            generated = self._generated[self.ids]
            values -= params.frequency_penalty * generated
            values -= params.presence_penalty * (generated > 0)
        row[self.ids] = values


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


def _uniform(state: SequenceState) -> float:
    generator = np.random.Philox(key=state.request.seed & _KEY_MASK, counter=[0, 0, 0, state.num_output_tokens])
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
