"""Log-probabilities in OpenAI's two shapes, chat's list of tokens and completions' parallel lists, and in vLLM's."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from itertools import accumulate
from typing import Protocol

from trifocal.api.openai.objects import (
    ChatLogprobs,
    ChosenToken,
    CompletionLogprobs,
    PromptLogprobs,
    PromptToken,
    Token,
)
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
    spelled = [_spellings(token.token_ids, speller) for token in tokens]
    return {
        "text_offset": _offsets([names[0] for names in spelled], offset),
        "tokens": [names[0] for names in spelled],
        "token_logprobs": [max(token.logprobs[0], _LOWEST) for token in tokens],
        "top_logprobs": [_by_name(names, token.logprobs) for names, token in zip(spelled, tokens, strict=True)],
    }


def echoed_logprobs(
    text: str,
    token_ids: Sequence[int],
    prompt: Sequence[TokenLogprobs | None],
    num_rivals: int,
    speller: TokenSpeller,
) -> CompletionLogprobs:
    """`logprobs` of a prompt, `text`, that its completion begins with: null for the first token, which nothing
    foretells."""
    tops: list[dict[str, float] | None] = []
    for token in prompt:
        if token is None:
            tops.append(None)
        else:
            shown = _num_shown(token, num_rivals)
            tops.append(_by_name(_spellings(token.token_ids[:shown], speller), token.logprobs[:shown]))
    return {
        "text_offset": _offsets_in(text, [speller.token_bytes(token_id) for token_id in token_ids]),
        "tokens": _spellings(token_ids, speller),
        "token_logprobs": [None if token is None else max(token.logprobs[0], _LOWEST) for token in prompt],
        "top_logprobs": tops,
    }


def joined(first: CompletionLogprobs, second: CompletionLogprobs) -> CompletionLogprobs:
    """The lists of two stretches of a text, one behind the other."""
    return {
        "text_offset": first["text_offset"] + second["text_offset"],
        "tokens": first["tokens"] + second["tokens"],
        "token_logprobs": first["token_logprobs"] + second["token_logprobs"],
        "top_logprobs": first["top_logprobs"] + second["top_logprobs"],
    }


def prompt_logprobs(prompt: Sequence[TokenLogprobs | None], num_rivals: int, speller: TokenSpeller) -> PromptLogprobs:
    """vLLM's `prompt_logprobs`: for each token of the prompt an object by token id, its own first; null for none.

    `rank` 1 is the most likely token.
    """
    return [None if token is None else _by_id(token, num_rivals, speller) for token in prompt]


def _by_id(token: TokenLogprobs, num_rivals: int, speller: TokenSpeller) -> dict[str, PromptToken]:
    shown = _num_shown(token, num_rivals)
    found: dict[str, PromptToken] = {}
    for rank, (token_id, logprob) in enumerate(zip(token.token_ids[:shown], token.logprobs[:shown], strict=True)):
        found.setdefault(str(token_id), {
            "logprob": max(logprob, _LOWEST),
            "rank": rank or token.rank,
            "decoded_token": speller.token_bytes(token_id).decode(errors="replace"),
        })  # fmt: skip
    return found


def _num_shown(token: TokenLogprobs, num_rivals: int) -> int:
    """The token itself and so many rivals; -1: all."""
    return len(token.token_ids) if num_rivals < 0 else num_rivals + 1


def _spellings(token_ids: Sequence[int], speller: TokenSpeller) -> list[str]:
    return [speller.token_bytes(token_id).decode(errors="replace") for token_id in token_ids]


def _offsets(names: Sequence[str], first: int) -> list[int]:
    return list(accumulate(map(len, names[:-1]), initial=first)) if names else []


def _offsets_in(text: str, spelled: Sequence[bytes]) -> list[int]:
    """Where the tokens of `text` begin in it: one within a character, where that begins."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    ends = list(accumulate(len(decoder.decode(each)) for each in spelled))
    num_added = max(0, ends[-1] - len(text))  # by the tokenizer, in front: a token of the beginning, a space
    return [min(max(0, offset - num_added), len(text)) for offset in (0, *ends[:-1])]


def _by_name(names: Sequence[str], logprobs: Sequence[float]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, logprob in zip(names, logprobs, strict=True):  # halves of characters share a name: keep the likelier
        found[name] = max(logprob, found.get(name, _LOWEST))
    return found
