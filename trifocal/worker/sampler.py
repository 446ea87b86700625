"""Batched sampling: penalties, biases, filters and a reproducible choice.

Order and meaning as in vLLM: logit bias and min_tokens, penalties, then arg-max for greedy rows; temperature, min_p,
top_k, top_p and a draw for the others. Log-probabilities are those of the raw logits.
The draw uses one uniform number from a counter-based generator (Philox, Salmon et al. 2011) keyed by (request seed,
output index): a row's result depends on nothing else in the batch, and a resumed request continues the same stream.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trifocal.log import get_logger
from trifocal.sampling_params import SamplingParams
from trifocal.types import TokenLogprobs
from trifocal.worker.input_batch import SequenceState

logger = get_logger(__name__)
_KEY_MASK = (1 << 64) - 1
_BLOCK = 128  # tokens whose largest is found first, see `_argmax`


@dataclass(frozen=True)
class Sampled:
    """One token per row; that of a row with an error is a filler. Errors and log-probabilities go by row."""

    token_ids: list[int]
    errors: dict[int, str] = field(default_factory=dict)
    logprobs: dict[int, TokenLogprobs] = field(default_factory=dict)


class Sampler:
    """Chooses tokens. It keeps token counts of the sequences that need them (penalties)."""

    def __init__(self, num_vocab: int) -> None:
        self.num_vocab = num_vocab  # ids beyond the tokenizer exist in padded heads and are never chosen
        self._counts: dict[str, _TokenCounts] = {}

    def forget(self, request_id: str) -> None:
        """Drop what is kept for a sequence."""
        self._counts.pop(request_id, None)

    def __call__(self, logits: Tensor, states: list[SequenceState]) -> Sampled:
        """logits float32 [m, vocab], one row per state. The logits are changed in place."""
        logits[:, self.num_vocab :] = -torch.inf
        params = [state.request.params for state in states]
        raw = {i: logits[i].clone() for i, p in enumerate(params) if p.logprobs is not None}
        for row, state in enumerate(states):
            self._adjust(logits[row], state)
        chosen, largest = _argmax(logits)
        valid = torch.isfinite(largest).tolist()
        drawn = [i for i, p in enumerate(params) if not p.is_greedy]
        if drawn:
            rows = logits if len(drawn) == len(params) else logits[drawn]
            chosen[drawn] = _draw(rows, [states[i] for i in drawn])
        token_ids = [int(t) if ok else 0 for t, ok in zip(chosen.tolist(), valid, strict=True)]
        return Sampled(
            token_ids=token_ids,
            errors={
                i: "the model produced no valid probabilities (NaN or infinity)" for i, ok in enumerate(valid) if not ok
            },
            logprobs={i: _logprobs(row, token_ids[i], params[i].logprobs or 0) for i, row in raw.items() if valid[i]},
        )

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

    def _adjust(self, row: Tensor, state: SequenceState) -> None:
        params = state.request.params
        if params.logit_bias:
            ids = torch.tensor(list(params.logit_bias), device=row.device)
            row[ids] += torch.tensor(list(params.logit_bias.values()), dtype=row.dtype, device=row.device)
        if state.num_output_tokens < params.min_tokens and state.request.stop_token_ids:
            row[[i for i in state.request.stop_token_ids if i < len(row)]] = -torch.inf
        if _has_penalty(params):
            counts = self._counts.setdefault(state.request.request_id, _TokenCounts(state, row))
            counts.catch_up(state)
            counts.penalize(row, params)


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
    """How often each token was generated, and which occurred at all (prompt included)."""

    def __init__(self, state: SequenceState, like: Tensor) -> None:
        self._num_seen = 0
        self._generated = torch.zeros_like(like)
        self._occurred = torch.zeros_like(like, dtype=torch.bool)
        self._occurred[torch.from_numpy(state.token_ids[: state.num_prompt_tokens]).to(like.device)] = True

    def catch_up(self, state: SequenceState) -> None:
        """Count the tokens generated since the last call."""
        ids = torch.from_numpy(state.output_token_ids[self._num_seen :].copy()).to(self._generated.device)
        self._generated.scatter_add_(0, ids, torch.ones_like(ids, dtype=self._generated.dtype))
        self._occurred[ids] = True
        self._num_seen = state.num_output_tokens

    def penalize(self, row: Tensor, params: SamplingParams) -> None:
        """Repetition penalty (CTRL, Keskar et al. 2019) over prompt and output; OpenAI's two over the output."""
        scale = params.repetition_penalty
        if scale != 1.0:
            row.copy_(torch.where(self._occurred, torch.where(row > 0, row / scale, row * scale), row))
        row -= params.frequency_penalty * self._generated
        row -= params.presence_penalty * (self._generated > 0)


def _draw(logits: Tensor, states: list[SequenceState]) -> Tensor:
    """One token for each row of `logits` [m, vocab]; returns int64 [m]."""
    params = [state.request.params for state in states]
    temperature = torch.tensor([[p.temperature] for p in params], dtype=logits.dtype, device=logits.device)
    probs = (logits / temperature).softmax(dim=-1)
    if any(p.min_p > 0 for p in params):
        floor = torch.tensor([[p.min_p] for p in params], dtype=probs.dtype, device=probs.device)
        probs = probs * (probs >= floor * probs.amax(dim=-1, keepdim=True))
    if any(p.top_k > 0 or p.top_p < 1 for p in params):
        probs = _top_k_top_p(probs, params)
    cumulative = probs.double().cumsum(dim=-1)
    noise = torch.tensor([[_uniform(state)] for state in states], dtype=torch.float64, device=probs.device)
    token_ids = torch.searchsorted(cumulative, noise * cumulative[:, -1:], right=True).squeeze(-1)
    # Rounding may point past the last possible token; the most likely one stands in.
    possible = probs.gather(1, token_ids.clamp(max=probs.shape[1] - 1)[:, None]).squeeze(-1) > 0
    return torch.where(possible, token_ids, probs.argmax(dim=-1))


def _top_k_top_p(probs: Tensor, params: list[SamplingParams]) -> Tensor:
    """Zero what top_k, then top_p leave out. probs [m, vocab] need not sum to one."""
    vocab = probs.shape[1]
    ordered, index = probs.sort(dim=-1, descending=True, stable=True)
    top_k = torch.tensor([[min(p.top_k, vocab) if p.top_k > 0 else vocab] for p in params], device=probs.device)
    ordered = ordered * (torch.arange(vocab, device=probs.device) < top_k)
    top_p = torch.tensor([[p.top_p] for p in params], dtype=torch.float64, device=probs.device)
    cumulative = ordered.double().cumsum(dim=-1)
    before = cumulative - ordered  # mass of the more likely ones: the token that crosses top_p is kept
    ordered = ordered * ((before < top_p * cumulative[:, -1:]) | (top_p >= 1))  # 1 keeps what rounding would not
    return torch.zeros_like(probs).scatter_(1, index, ordered)


def _uniform(state: SequenceState) -> float:
    generator = np.random.Philox(key=state.request.seed & _KEY_MASK, counter=[0, 0, 0, state.num_output_tokens])
    return float(np.random.Generator(generator).random())


def _logprobs(row: Tensor, chosen: int, num_top: int) -> TokenLogprobs:
    """Log-probabilities of one row of raw logits: the chosen token, then the `num_top` most likely (-1: all)."""
    logprobs = row.log_softmax(dim=-1)
    num_top = int(logprobs.isfinite().sum()) if num_top < 0 else min(num_top, len(row))
    values, ids = logprobs.topk(num_top) if num_top else (logprobs[:0], torch.empty(0, dtype=torch.long))
    own = float(logprobs[chosen])
    return TokenLogprobs(
        token_ids=[chosen, *ids.tolist()],
        logprobs=[max(value, -1e30) for value in [own, *values.tolist()]],
        rank=int((logprobs > own).sum()) + 1,
    )
