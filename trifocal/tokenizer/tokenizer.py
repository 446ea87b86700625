"""`Tokenizer`: text to ids and back, with the rule that user text never becomes a control token (see `Guard`).

A rendered chat must be tokenised exactly as Hugging Face tokenises the whole prompt, byte pairs across the seams
included, but for the control literals that users wrote. So the template's literals take aliases made of private-use
characters, the `Guard`'s sentinels become plain text again, and a twin tokenizer that knows the added tokens by their
aliases only encodes the result in one call.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import tokenizers

from trifocal.tokenizer.folder import content_of
from trifocal.tokenizer.guard import Guard, any_of, private_name, reveal, valid_text
from trifocal.tokenizer.spelling import byte_level_bytes, sentencepiece_bytes

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Tokenizer:
    """Text to ids and back. Every method may be called from several threads at once.

    `backend` is the `tokenizers.Tokenizer` itself.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, config: Mapping[str, Any], chat_template: str | None = None
    ) -> None:
        backend.no_padding()
        backend.no_truncation()
        self.backend = backend
        added = backend.get_added_tokens_decoder()
        self._describe(added, config, chat_template)
        self.vocab_size = max([backend.get_vocab_size(), *(token_id + 1 for token_id in added)])
        self._build_twin(added)

    # ------------------------------------------------------------------------------------------ text to ids

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Ids of a raw prompt: control tokens in `text` are recognised, as in a completion prompt.

        `add_special_tokens` adds what the tokenizer puts around a text (a BOS for some families).
        """
        return self.backend.encode(valid_text(text), add_special_tokens=add_special_tokens).ids

    def encode_plain(self, text: str) -> list[int]:
        """Ids of `text` where nothing becomes a control token."""
        guard = self.guard()
        return self.encode_chat(guard.hide(text), guard.protected)

    def guard(self) -> Guard:
        """A fresh `Guard` for one rendering."""
        return Guard(self._control_pattern, self._beginnings)

    def encode_chat(self, rendered: str, protected: Mapping[str, str]) -> list[int]:
        """Ids of a rendered chat prompt; `protected` is what the `Guard` of the rendering hid."""
        aliased = self._added_pattern.sub(lambda match: self._aliases[match[0]], rendered)
        ids = self._twin.encode(reveal(aliased, protected), add_special_tokens=False).ids
        return [self._real_ids.get(token_id, token_id) for token_id in ids]

    # ------------------------------------------------------------------------------------------ ids to text

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of `ids`; unknown ids are left out, bytes that are no UTF-8 become U+FFFD."""
        return self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def id_to_token(self, token_id: int) -> str | None:
        """The vocabulary's spelling of an id."""
        return self.backend.id_to_token(token_id)

    def token_to_id(self, token: str) -> int | None:
        """The id of a token given in the vocabulary's spelling."""
        return self.backend.token_to_id(token)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for (OpenAI's `logprobs.bytes`); empty for an unknown id."""
        token = self.id_to_token(token_id)
        if token is None:
            return b""
        return token.encode() if token in self._added else self._spelling_to_bytes(token)

    # ------------------------------------------------------------------------------------------ the rest

    @cached_property
    def longest_token(self) -> int:
        """Characters of the longest token: `n` tokens hold no more than `n * longest_token` characters."""
        return max(map(len, self.backend.get_vocab()), default=1)

    @property
    def special_tokens(self) -> dict[str, str]:
        """`bos_token`, `eos_token`, … as chat templates see them."""
        found = {name: content_of(self._config.get(name)) for name in _NAMED}
        return {name: text for name, text in found.items() if text is not None}

    def _describe(
        self, added: Mapping[int, tokenizers.AddedToken], config: Mapping[str, Any], chat_template: str | None
    ) -> None:
        self.chat_template = chat_template
        self._config = config
        self._added = {token.content: token_id for token_id, token in added.items()}
        self.special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self.bos_token_id = self._named_id("bos_token")
        self.eos_token_id = self._named_id("eos_token")
        controls = [token.content for token in added.values() if token.special or _is_markup(token.content)]
        self._control_pattern = any_of(controls)
        self._beginnings = frozenset(text[:length] for text in controls for length in range(1, len(text)))

    def _named_id(self, name: str) -> int | None:
        text = content_of(self._config.get(name))
        return None if text is None else self.token_to_id(text)

    def _build_twin(self, added: Mapping[int, tokenizers.AddedToken]) -> None:
        nonce = secrets.token_hex(8)
        twin = tokenizers.Tokenizer(self.backend.model)  # shares the vocabulary, copies nothing
        twin.normalizer = self.backend.normalizer
        twin.pre_tokenizer = self.backend.pre_tokenizer
        self._aliases: dict[str, str] = {}
        patterns = []
        for index, token in enumerate(sorted(added.values(), key=lambda token: -len(token.content))):
            alias = private_name(nonce, index)
            self._aliases[token.content] = alias
            literal = re.escape(token.content)
            patterns.append(rf"(?<!\w){literal}(?!\w)" if token.single_word else literal)
            token.content = alias
            twin.add_special_tokens([token]) if token.special else twin.add_tokens([token])
        self._added_pattern = re.compile("|".join(patterns) or r"(?!)")
        self._twin = twin
        self._real_ids = {twin.token_to_id(alias): self._added[text] for text, alias in self._aliases.items()}

    @cached_property
    def _spelling_to_bytes(self) -> Callable[[str], bytes]:
        return byte_level_bytes if "ByteLevel" in repr(self.backend.decoder) else sentencepiece_bytes


def _is_markup(text: str) -> bool:
    return len(text) > 2 and text[0] in "<[" and text[-1] in ">]"
