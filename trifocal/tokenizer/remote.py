"""Tokenizers that are Python code in the checkpoint folder: run only when `--trust-remote-code` allows it."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from functools import cached_property
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any

import tokenizers

from trifocal.errors import ArgumentError, ConfigError, RequestError
from trifocal.log import get_logger
from trifocal.tokenizer.folder import class_of
from trifocal.tokenizer.guard import any_of, reveal, valid_text
from trifocal.tokenizer.spelling import sentencepiece_bytes
from trifocal.tokenizer.tokenizer import Tokenizer

_log = get_logger(__name__)

_REFERENCE = re.compile(r"([A-Za-z_]\w*)\.([A-Za-z_]\w*)")  # module.Class; "repository--module.Class" lies elsewhere


def load_remote(folder: Path, config: Mapping[str, Any], chat_template: str | None, *, is_trusted: bool) -> Tokenizer:
    """The tokenizer that `auto_map` of tokenizer_config.json names. Raises `ConfigError`, also if it is not trusted."""
    reference = _reference(config)
    if reference is None:
        raise ConfigError(_nothing_usable(folder, config))
    if not is_trusted:
        raise ArgumentError(
            "the tokenizer of {} is Python code ({} in tokenizer_config.json), which is not run. "
            "{trust_remote_code} runs it with all your rights, on your files and your network: read the code first. It "
            "is safer to save the fast tokenizer (tokenizer.json) in the folder",
            folder.name,
            reference,
        )
    _log.warning("running %s of %s, as --trust-remote-code allows", reference, folder)
    try:
        python = _import(folder, reference).from_pretrained(str(folder))
    except Exception as error:  # it is foreign code
        _log.debug("the tokenizer's code failed", exc_info=True)
        raise ConfigError(
            f"{folder.name}: the tokenizer {reference} failed: {type(error).__name__}: {error}"
        ) from error
    backend = getattr(python, "backend_tokenizer", None)
    if isinstance(backend, tokenizers.Tokenizer):
        return Tokenizer(backend, config, chat_template)
    return PythonTokenizer(python, config, chat_template)


def _reference(config: Mapping[str, Any]) -> str | None:
    """`module.Class` of the tokenizer: the fast one where there are two."""
    listed = config.get("auto_map")
    if isinstance(listed, Mapping):
        listed = listed.get("AutoTokenizer")
    names = listed if isinstance(listed, list) else [listed]
    return next((name for name in reversed(names) if isinstance(name, str)), None)


def _nothing_usable(folder: Path, config: Mapping[str, Any]) -> str:
    kind = class_of(config)
    which = f", as are the other files that could make a {kind}" if kind else ""
    return f"{folder.name}/tokenizer.json is missing{which}: save the fast tokenizer there"


def _import(folder: Path, reference: str) -> Any:
    """The class `module.Class` of a file in `folder`; relative imports in it find the folder's other files."""
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise ValueError("auto_map must name a class of a file in the folder, as module.Class")
    package = f"trifocal_remote_{sha256(str(folder.resolve()).encode()).hexdigest()[:16]}"
    if package not in sys.modules:
        module = ModuleType(package)
        module.__path__ = [str(folder.resolve())]
        sys.modules[package] = module
    return getattr(import_module(f"{package}.{match[1]}"), match[2])


class PythonTokenizer(Tokenizer):
    """A tokenizer with the methods of transformers' Python tokenizers, behind the same interface.

    Its calls run one at a time: foreign code may not work in several threads.
    """

    def __init__(self, python: Any, config: Mapping[str, Any], chat_template: str | None) -> None:
        self._python = python
        self._lock = Lock()
        added = python.added_tokens_decoder
        self._vocabulary = {**python.get_vocab(), **{token.content: token_id for token_id, token in added.items()}}
        self._known_ids = frozenset(self._vocabulary.values())
        self._describe(added, config, chat_template)
        self.vocab_size = max(self._known_ids, default=-1) + 1
        self._spelling_to_bytes = sentencepiece_bytes

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        with self._lock:
            return list(self._python.encode(valid_text(text), add_special_tokens=add_special_tokens))

    def encode_chat(self, rendered: str, protected: Mapping[str, str]) -> list[int]:
        """See `Tokenizer.encode_chat`. A prompt in which users wrote a control literal is encoded in pieces."""
        text = reveal(rendered, protected)
        if self._control_pattern.findall(text) == self._control_pattern.findall(rendered):
            return self.encode(text, add_special_tokens=False)
        ids: list[int] = []
        for piece in re.split(f"({any_of(list(protected)).pattern})", rendered):
            if piece in protected:
                ids += self._encode_literal(protected[piece])
            elif piece:
                ids += self.encode(piece, add_special_tokens=False)
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        # Left out here: some tokenizers know fewer special tokens than the checkpoint lists, and trip over unknown ids.
        shown = self._known_ids - self.special_ids if skip_special_tokens else self._known_ids
        known = [token_id for token_id in ids if token_id in shown]
        with self._lock:
            return str(
                self._python.decode(known, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False)
            )

    def id_to_token(self, token_id: int) -> str | None:
        if token_id not in self._known_ids:
            return None
        with self._lock:
            return str(self._python.convert_ids_to_tokens(token_id))

    def token_to_id(self, token: str) -> int | None:
        return self._vocabulary.get(token)

    @cached_property
    def longest_token(self) -> int:
        return max(map(len, self._vocabulary), default=1)

    def _encode_literal(self, literal: str) -> list[int]:
        """Ids of a control literal as plain text; `RequestError` where the tokenizer cannot write it so."""
        with self._lock:
            ids = list(self._python.encode(literal, add_special_tokens=False, split_special_tokens=True))
        if any(token_id in self._added.values() for token_id in ids):
            raise RequestError(f"this model's tokenizer cannot take {literal!r} as plain text", param="messages")
        return ids
