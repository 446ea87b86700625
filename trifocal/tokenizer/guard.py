"""`Guard`: the one rule that user text never becomes a control token.

Chat prompts mix text of the template with text of users. A control token such as `<|im_end|>` may come from the
template only. So a `Guard` replaces control literals in user text with sentinels before rendering; afterwards the
literals that are left are the template's. `Tokenizer.encode_chat` does the rest.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

_OPEN, _CLOSE, _DIGITS = "\uf8e0", "\uf8e1", 0xF8D0  # private use: no normaliser, case filter or \w touches them

_MARK = 0xFFFFFF  # the index of `Guard.mark`: more than any vocabulary has control tokens
_SURROGATES = re.compile("[\ud800-\udfff]")


def private_name(nonce: str, index: int) -> str:
    """A string that no user can guess: `nonce` and `index` in hexadecimal, written with private-use characters."""
    digits = "".join(chr(_DIGITS + int(digit, 16)) for digit in f"{nonce}{index:06x}")
    return f"{_OPEN}{digits}{_CLOSE}"


def valid_text(text: str) -> str:
    """`text` with U+FFFD for each lone surrogate: JSON can carry those, UTF-8 and the tokenizers cannot."""
    return _SURROGATES.sub("\ufffd", text)


def any_of(texts: Sequence[str]) -> re.Pattern[str]:
    """A pattern that matches the leftmost of `texts`, the longest first; never matches if there are none."""
    return re.compile("|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True)) or r"(?!)")


class Guard:
    """Hides control tokens in what users wrote, for one rendering; `protected` maps each sentinel to its text.

    Beside whole literals, a beginning of one at the end of a string is hidden: two neighbouring parts of a message must
    not join to a control token either.
    """

    def __init__(self, controls: re.Pattern[str], beginnings: frozenset[str]) -> None:
        self._controls = controls
        self._beginnings = beginnings
        self._longest = max(map(len, beginnings), default=0)
        self._nonce = secrets.token_hex(8)
        self._sentinels: dict[str, str] = {}
        self.protected: dict[str, str] = {}

    def hide(self, text: str) -> str:
        """`text` without control literals."""
        hidden = self._controls.sub(lambda match: self._sentinel(match[0]), valid_text(text))
        for length in range(min(self._longest, len(hidden)), 0, -1):
            if hidden[-length:] in self._beginnings:
                return hidden[:-length] + self._sentinel(hidden[-length:])
        return hidden

    def hide_all(self, value: Any) -> Any:
        """`value` with every string in it hidden: strings, and keys and values of lists and dicts at any depth."""
        if isinstance(value, str):
            return self.hide(value)
        if isinstance(value, Mapping):
            return {self.hide_all(key): self.hide_all(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.hide_all(item) for item in value]
        return value

    @property
    def mark(self) -> str:
        """A string that no user can have written: put into a text, it shows where a template puts that text."""
        return private_name(self._nonce, _MARK)

    def reveal(self, text: str) -> str:
        """`text` as it reads with the users' literals back in place."""
        return reveal(text, self.protected)

    def _sentinel(self, literal: str) -> str:
        sentinel = self._sentinels.get(literal)
        if sentinel is None:
            sentinel = private_name(self._nonce, len(self._sentinels))
            self._sentinels[literal] = sentinel
            self.protected[sentinel] = literal
        return sentinel


def reveal(text: str, protected: Mapping[str, str]) -> str:
    """`text` with every sentinel of a `Guard` replaced by what it stands for."""
    if not protected:
        return text
    return any_of(list(protected)).sub(lambda match: protected[match[0]], text)
