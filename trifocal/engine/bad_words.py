"""The tokens of `bad_words`: text becomes ids here, beside the tokenizer, and the engine sees ids alone."""

from __future__ import annotations

from functools import lru_cache

from trifocal.errors import RequestError
from trifocal.tokenizer import Tokenizer


@lru_cache(maxsize=16)
def bad_word_ids(words: tuple[str, ...], tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    """Each word as it is written and, as in vLLM, behind a space where that makes another first token of as many.

    Raises `RequestError` for a word that has no tokens, or some that the vocabulary does not have.
    """
    found: list[tuple[int, ...]] = []
    for index, word in enumerate(words):
        plain, behind_space = (
            tuple(tokenizer.encode(space + word.lstrip(), add_special_tokens=False)) for space in ("", " ")
        )
        if not plain or max(plain) >= tokenizer.vocab_size:
            raise RequestError(
                f"bad_words[{index}]: {word!r:.80} cannot be written with the tokens of the vocabulary",
                param="bad_words",
            )
        found.append(plain)
        if len(behind_space) == len(plain) and behind_space[0] != plain[0]:
            found.append(behind_space)
    return tuple(found)
