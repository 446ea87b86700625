"""`Tokenizer`: a checkpoint's tokenizer.json, and the one rule that user text never becomes a control token.

Chat prompts mix text of the template with text of users. A control token such as `<|im_end|>` may come from the
template only, yet the rest must be tokenised exactly as Hugging Face tokenises the whole rendered prompt, byte pairs
across the seams included. So a `Guard` replaces control literals in user text with sentinels before rendering.
Afterwards the literals that are left are the template's: they take aliases made of private-use characters, the
sentinels become plain text again, and a twin tokenizer that knows the added tokens by their aliases only encodes the
result in one call.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from trifocal.log import get_logger
from trifocal.model_spec import read_json
from trifocal.types import ConfigError

_log = get_logger(__name__)

_OPEN, _CLOSE, _DIGITS = "\uf8e0", "\uf8e1", 0xF8D0  # private use: no normaliser, case filter or \w touches them

_SURROGATES = re.compile("[\ud800-\udfff]")


def _private(nonce: str, index: int) -> str:
    """A string that no user can guess: `nonce` and `index` in hexadecimal, written with private-use characters."""
    digits = "".join(chr(_DIGITS + int(digit, 16)) for digit in f"{nonce}{index:06x}")
    return f"{_OPEN}{digits}{_CLOSE}"


def valid_text(text: str) -> str:
    """`text` with U+FFFD for each lone surrogate: JSON can carry those, UTF-8 and the tokenizers cannot."""
    return _SURROGATES.sub("\ufffd", text)


def _alternatives(texts: Sequence[str]) -> str:
    """A pattern that matches the leftmost of `texts`, the longest first; never matches if there are none."""
    return "|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True)) or r"(?!)"


def _is_markup(text: str) -> bool:
    return len(text) > 2 and text[0] in "<[" and text[-1] in ">]"


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

    def reveal(self, text: str) -> str:
        """`text` as it reads with the users' literals back in place."""
        return _reveal(text, self.protected)

    def _sentinel(self, literal: str) -> str:
        sentinel = self._sentinels.get(literal)
        if sentinel is None:
            sentinel = _private(self._nonce, len(self._sentinels))
            self._sentinels[literal] = sentinel
            self.protected[sentinel] = literal
        return sentinel


def _reveal(text: str, protected: Mapping[str, str]) -> str:
    if not protected:
        return text
    return re.sub(_alternatives(list(protected)), lambda match: protected[match[0]], text)


class Tokenizer:
    """Text to ids and back. Every method may be called from several threads at once.

    `backend` is the `tokenizers.Tokenizer` itself, for incremental decoding.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, config: Mapping[str, Any], chat_template: str | None = None
    ) -> None:
        backend.no_padding()
        backend.no_truncation()
        self.backend = backend
        self.chat_template = chat_template
        self._config = config
        added = backend.get_added_tokens_decoder()
        self._added = {token.content: token_id for token_id, token in added.items()}
        self.special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self.vocab_size = max([backend.get_vocab_size(), *(token_id + 1 for token_id in added)])
        self.bos_token_id = self._named_id("bos_token")
        self.eos_token_id = self._named_id("eos_token")
        self._controls = [token.content for token in added.values() if token.special or _is_markup(token.content)]
        self._control_pattern = re.compile(_alternatives(self._controls))
        beginnings = (text[:length] for text in self._controls for length in range(1, len(text)))
        self._beginnings = frozenset(beginnings)
        self._build_twin(added)

    @classmethod
    def from_folder(cls, path: str, *, trust_remote_code: bool = False) -> Tokenizer:
        """Read tokenizer.json, tokenizer_config.json and the chat template of a folder. Raises `ConfigError`."""
        folder = Path(path).expanduser()
        file = folder / "tokenizer.json"
        if not file.is_file():
            extra = "; a tokenizer in Python is not run, --trust-remote-code or not" if trust_remote_code else ""
            raise ConfigError(f"{folder.name}/tokenizer.json is missing: save the fast tokenizer there{extra}")
        try:
            backend = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception
            raise ConfigError(f"{folder.name}/tokenizer.json cannot be read: {error}") from None
        config = {**read_json(folder / "special_tokens_map.json"), **read_json(folder / "tokenizer_config.json")}
        _add_missing(backend, config.get("added_tokens_decoder") or {})
        return cls(backend, config, _find_chat_template(folder, config))

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
        ids = self._twin.encode(_reveal(aliased, protected), add_special_tokens=False).ids
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
        token = self.backend.id_to_token(token_id)
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
        names = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
        found = {name: _content(self._config.get(name)) for name in names}
        return {name: text for name, text in found.items() if text is not None}

    def _named_id(self, name: str) -> int | None:
        text = _content(self._config.get(name))
        return None if text is None else self.backend.token_to_id(text)

    def _build_twin(self, added: Mapping[int, tokenizers.AddedToken]) -> None:
        nonce = secrets.token_hex(8)
        twin = tokenizers.Tokenizer(self.backend.model)  # shares the vocabulary, copies nothing
        twin.normalizer = self.backend.normalizer
        twin.pre_tokenizer = self.backend.pre_tokenizer
        self._aliases: dict[str, str] = {}
        patterns = []
        for index, token in enumerate(sorted(added.values(), key=lambda token: -len(token.content))):
            alias = _private(nonce, index)
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
        return _byte_level_bytes if "ByteLevel" in repr(self.backend.decoder) else _sentencepiece_bytes


def _content(token: object) -> str | None:
    """A special token of tokenizer_config.json, written as a string or as `{"content": …}`."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _add_missing(backend: tokenizers.Tokenizer, listed: Mapping[str, Any]) -> None:
    """Add tokens that tokenizer_config.json lists and tokenizer.json does not know, in the order of their ids."""
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    for token_id, entry in sorted(listed.items(), key=lambda item: int(item[0])):
        content = _content(entry)
        if content is None or backend.token_to_id(content) is not None:
            continue
        token = tokenizers.AddedToken(content, **{flag: bool(entry[flag]) for flag in flags if flag in entry})
        backend.add_special_tokens([token]) if token.special else backend.add_tokens([token])
        if backend.token_to_id(content) != int(token_id):
            _log.warning("tokenizer_config.json gives %r the id %s, but tokenizer.json has another", content, token_id)


def _find_chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The folder's template: chat_template.jinja, chat_template.json, tokenizer_config.json, whichever comes first."""
    try:
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    except FileNotFoundError:
        pass
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{folder.name}/chat_template.jinja cannot be read: {error}") from None
    template = read_json(folder / "chat_template.json").get("chat_template") or config.get("chat_template")
    if isinstance(template, list):  # several named ones
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, Mapping)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's spelling of the 256 bytes as printable characters."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


_BYTE_OF = _byte_level_alphabet()
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_level_bytes(token: str) -> bytes:
    if all(char in _BYTE_OF for char in token):
        return bytes(_BYTE_OF[char] for char in token)
    return token.encode()


def _sentencepiece_bytes(token: str) -> bytes:
    match = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(match[1], 16)]) if match else token.replace("\u2581", " ").encode()
