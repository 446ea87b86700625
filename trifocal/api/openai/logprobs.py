"""Log-probabilities in OpenAI's two shapes: chat's list of tokens and completions' parallel lists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from trifocal.api.openai.responses import ChatLogprobs, ChosenToken, CompletionLogprobs, Token
from trifocal.types import TokenLogprobs

_LOWEST = -9999.0  # stands for minus infinity, which JSON cannot write; vLLM's number


class TokenSpeller(Protocol):
    """The part of a tokenizer that is needed here."""

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for."""


def chat_logprobs(tokens: Sequence[TokenLogprobs], speller: TokenSpeller) -> ChatLogprobs:
    """`logprobs` of a chat choice: one entry per token, with its bytes and its most likely rivals."""
    return {"content": [_chat_entry(token, speller) for token in tokens], "refusal": None}


def _chat_entry(token: TokenLogprobs, speller: TokenSpeller) -> ChosenToken:
    entries = [
        _spelled(speller.token_bytes(token_id), logprob)
        for token_id, logprob in zip(token.token_ids, token.logprobs, strict=True)
    ]
    return {**entries[0], "top_logprobs": entries[1:]}


def _spelled(spelling: bytes, logprob: float) -> Token:
    text = spelling.decode(errors="replace")
    return {"token": text, "logprob": max(logprob, _LOWEST), "bytes": list(spelling)}


def completion_logprobs(tokens: Sequence[TokenLogprobs], speller: TokenSpeller, offset: int) -> CompletionLogprobs:
    """`logprobs` of a completion choice whose text so far has `offset` characters."""
    spelled = [[speller.token_bytes(token_id).decode(errors="replace") for token_id in t.token_ids] for t in tokens]
    offsets = []
    for names in spelled:
        offsets.append(offset)
        offset += len(names[0])
    return {
        "text_offset": offsets,
        "tokens": [names[0] for names in spelled],
        "token_logprobs": [max(token.logprobs[0], _LOWEST) for token in tokens],
        "top_logprobs": [_by_name(names, token) for names, token in zip(spelled, tokens, strict=True)],
    }


def _by_name(names: Sequence[str], token: TokenLogprobs) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, logprob in zip(
        names, token.logprobs, strict=True
    ):  # halves of characters share a name: keep the likelier
        found[name] = max(logprob, found.get(name, _LOWEST))
    return found
