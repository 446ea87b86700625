"""Token ids to text, piece by piece."""

from __future__ import annotations

from collections.abc import Sequence

from trifocal.tokenizer import Tokenizer

_NUM_CONTEXT = 5  # prompt tokens decoded along: some tokenizers write a first token differently from a later one
_UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what decoding gives for a character whose bytes are not complete yet


class Detokenizer:
    """Text of one output sequence. Concatenated, the pieces equal decoding all ids at once.

    Two windows are decoded, with and without the newest tokens, and their difference is new text (the method of
    Hugging Face's text-generation-inference): a token's text depends on its neighbours only a few tokens back.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_token_ids: Sequence[int], *, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._ids = list(prompt_token_ids[-_NUM_CONTEXT:])
        self._prefix = 0
        self._read = len(self._ids)

    def feed(self, token_id: int) -> str:
        """Add a token; returns the text it completes ("" while a character's bytes are incomplete)."""
        self._ids.append(token_id)
        return self._advance(is_last=False)

    def flush(self) -> str:
        """Text of what never became a whole character."""
        return self._advance(is_last=True)

    def _advance(self, *, is_last: bool) -> str:
        before = self._decode(self._ids[self._prefix : self._read])
        after = self._decode(self._ids[self._prefix :])
        if len(after) <= len(before) or (after.endswith(_UNFINISHED) and not is_last):
            return ""
        self._prefix, self._read = self._read, len(self._ids)
        return after[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip_special_tokens)
