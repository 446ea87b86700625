"""Logits processors: what changes a sequence's logits before a token is chosen. Names and meaning as in vLLM.

A sequence has its own, made of its request; then they are told each token that it has or gets. So their state is a
function of prompt and output alone: a sequence that starts again, in this worker or another, goes on as it was.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from trifocal.types import Request


class LogitsProcessor(ABC):
    """Of one sequence. What it raises ends that request, and no other."""

    @abstractmethod
    def apply(self, row: Tensor) -> None:
        """Change the logits of the next token, float32 [vocab], in place."""

    @abstractmethod
    def accept(self, token_id: int) -> None:
        """The output goes on with this token."""

    @abstractmethod
    def rollback(self, num_tokens: int) -> None:
        """Take back the last `num_tokens` that were accepted."""


def processors_of(request: Request) -> list[LogitsProcessor]:
    """What a request asks for, in the order in which it is applied; nothing for most."""
    params = request.params
    found: list[LogitsProcessor] = []
    if params.allowed_token_ids is not None:
        found.append(AllowedTokens(params.allowed_token_ids))
    if request.bad_word_ids:
        found.append(BadWords(request.bad_word_ids))
    if params.logit_bias:
        found.append(LogitBias(list(params.logit_bias), list(params.logit_bias.values())))
    if params.min_tokens and request.stop_token_ids:
        found.append(MinTokens(params.min_tokens, sorted(request.stop_token_ids)))
    scales = (params.repetition_penalty, params.frequency_penalty, params.presence_penalty)
    if scales != (1.0, 0.0, 0.0):
        found.append(Penalties(request.prompt.token_ids, *scales))
    return found


def apply_all(processors: Sequence[LogitsProcessor], rows: Tensor, drafts: Sequence[int]) -> None:
    """Change rows float32 [1 + len(drafts), vocab] in place: row i is of the token behind the first i drafts."""
    accepted: list[LogitsProcessor] = []
    try:
        for index, row in enumerate(rows):
            for processor in processors:
                processor.apply(row)
            if index < len(drafts):
                for processor in processors:
                    processor.accept(drafts[index])
                    accepted.append(processor)
    finally:
        for processor in processors:
            processor.rollback(accepted.count(processor))


class Constant(LogitsProcessor):
    """Does the same whatever the output is."""

    def accept(self, token_id: int) -> None:
        pass

    def rollback(self, num_tokens: int) -> None:
        pass


class AllowedTokens(Constant):
    """No token but these."""

    def __init__(self, token_ids: Sequence[int]) -> None:
        self._ids = torch.tensor(token_ids)

    def apply(self, row: Tensor) -> None:
        ids = self._ids.to(row.device)
        values = row[ids]
        row.fill_(-torch.inf)
        row[ids] = values


class BadWords(LogitsProcessor):
    """The last token of a word may not follow the others, where all of these were generated."""

    def __init__(self, words: Sequence[Sequence[int]]) -> None:
        self._words = [(list(word[:-1]), word[-1]) for word in words]
        self._output: list[int] = []

    def apply(self, row: Tensor) -> None:
        output = self._output
        banned = [last for start, last in self._words if output[max(0, len(output) - len(start)) :] == start]
        if banned:
            row[banned] = -torch.inf

    def accept(self, token_id: int) -> None:
        self._output.append(token_id)

    def rollback(self, num_tokens: int) -> None:
        del self._output[len(self._output) - num_tokens :]


class LogitBias(Constant):
    """Numbers that are added to the logits of some tokens."""

    def __init__(self, token_ids: Sequence[int], biases: Sequence[float]) -> None:
        self._ids = torch.tensor(token_ids)
        self._biases = torch.tensor(biases, dtype=torch.float32)

    def apply(self, row: Tensor) -> None:
        row[self._ids.to(row.device)] += self._biases.to(row.device)


class MinTokens(LogitsProcessor):
    """No token that ends the sequence before it has so many."""

    def __init__(self, min_tokens: int, stop_token_ids: Sequence[int]) -> None:
        self._num_missing = min_tokens
        self._ids = torch.tensor(stop_token_ids)

    def apply(self, row: Tensor) -> None:
        if self._num_missing > 0:
            ids = self._ids[self._ids < len(row)]  # clients send stop ids of other vocabularies
            row[ids.to(row.device)] = -torch.inf

    def accept(self, token_id: int) -> None:
        self._num_missing -= 1

    def rollback(self, num_tokens: int) -> None:
        self._num_missing += num_tokens


class Penalties(LogitsProcessor):
    """Repetition penalty (CTRL, Keskar et al. 2019) over prompt and output; OpenAI's two over the output."""

    def __init__(self, prompt: Sequence[int], repetition: float, frequency: float, presence: float) -> None:
        self._repetition, self._frequency, self._presence = repetition, frequency, presence
        # OpenAI's two do nothing to tokens that are in the prompt alone.
        ids = np.unique(np.asarray(prompt, dtype=np.int64)) if repetition != 1.0 else np.zeros(0, dtype=np.int64)
        self._places = {token_id: place for place, token_id in enumerate(ids.tolist())}
        self._num_of_prompt = len(ids)
        self._output: list[int] = []
        self._ids = np.concatenate([ids, np.zeros(64, dtype=np.int64)])  # with room to grow
        self._counts = np.zeros(len(self._ids), dtype=np.float32)  # how often each was generated

    def apply(self, row: Tensor) -> None:
        num_ids = len(self._places)
        ids = torch.from_numpy(self._ids[:num_ids]).to(row.device)
        values = row[ids]
        if self._repetition != 1.0:
            values = torch.where(values > 0, values / self._repetition, values * self._repetition)
        if self._frequency or self._presence:
            counts = torch.from_numpy(self._counts[:num_ids]).to(row.device)
            values -= self._frequency * counts
            values -= self._presence * (counts > 0)
        row[ids] = values

    def accept(self, token_id: int) -> None:
        self._output.append(token_id)
        place = self._places.setdefault(token_id, len(self._places))
        if place == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._ids[place] = token_id
        self._counts[place] += 1

    def rollback(self, num_tokens: int) -> None:
        for _ in range(num_tokens):
            token_id = self._output.pop()
            place = self._places[token_id]
            self._counts[place] -= 1
            if self._counts[place] == 0 and place >= self._num_of_prompt:
                del self._places[token_id]  # the last that was added
