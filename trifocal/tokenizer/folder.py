"""Which of a folder's data files make its tokenizer. Nothing here runs code of the folder.

tokenizer.json                  as it is
tokenizer.model                 sentencepiece; for the classes of `SENTENCEPIECE`, whose rules are known
vocab.json and merges.txt       byte-level BPE; for Qwen2Tokenizer (InternVL folders over Qwen2 have no more)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from trifocal.errors import ConfigError
from trifocal.log import get_logger
from trifocal.model_spec import read_json
from trifocal.tokenizer import sentencepiece

_log = get_logger(__name__)

# Special tokens that a class has even where the folder's files do not name them.
_LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_QWEN2 = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
SENTENCEPIECE = ("LlamaTokenizer", "InternLM2Tokenizer")
_DEFAULTS: Mapping[str, Mapping[str, str]] = {
    "LlamaTokenizer": _LLAMA, "InternLM2Tokenizer": {**_LLAMA, "pad_token": "</s>"}, "Qwen2Tokenizer": _QWEN2,
}  # fmt: skip
_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def read_config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, completed by special_tokens_map.json and what the named class has anyway."""
    config = {**read_json(folder / "special_tokens_map.json"), **read_json(folder / "tokenizer_config.json")}
    return {**_DEFAULTS.get(class_of(config), {}), **config}


def class_of(config: Mapping[str, Any]) -> str:
    """The tokenizer's class, the same name for its slow and its fast variant."""
    return str(config.get("tokenizer_class") or "").removesuffix("Fast")


def content_of(token: object) -> str | None:
    """A special token of tokenizer_config.json, written as a string or as `{"content": …}`."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) else None


def read_backend(folder: Path, config: Mapping[str, Any]) -> tokenizers.Tokenizer | None:
    """The tokenizer of the folder's data files, None where they do not suffice. Raises `ConfigError`."""
    kind = class_of(config)
    if (folder / "tokenizer.json").is_file():
        backend: tokenizers.Tokenizer = _parse(folder / "tokenizer.json", tokenizers.Tokenizer.from_file)
        listed = _added_tokens(folder, config.get("added_tokens_decoder") or {})
        _add_missing(backend, listed, "tokenizer.json")
        return backend
    if (folder / "tokenizer.model").is_file() and kind in SENTENCEPIECE:
        return _read_sentencepiece(folder, config, kind)
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file() and kind == "Qwen2Tokenizer":
        return _read_qwen2(folder, config)
    return None


def _parse(file: Path, read: Any) -> Any:
    try:
        return read(str(file))
    except Exception as error:  # the library raises bare Exception
        raise ConfigError(f"{file.parent.name}/{file.name} cannot be read: {error}") from None


def _read_sentencepiece(folder: Path, config: Mapping[str, Any], kind: str) -> tokenizers.Tokenizer:
    model = sentencepiece.read_model(folder / "tokenizer.model")
    # Llama's newer rule: only the very first word of a prompt takes a space in front, not the one after each token.
    is_first_only = kind == "LlamaTokenizer" and config.get("legacy") is False
    takes_prefix = model.add_dummy_prefix or is_first_only
    prefix: sentencepiece.Prefix = "first" if is_first_only else "always"
    return sentencepiece.convert(
        model,
        _listed_tokens(folder, config),
        prefix=prefix if takes_prefix and config.get("add_prefix_space") is not False else "never",
        bos=content_of(config.get("bos_token")) if config.get("add_bos_token", True) else None,
        eos=content_of(config.get("eos_token")) if config.get("add_eos_token", False) else None,
    )


def _read_qwen2(folder: Path, config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    merges = str(folder / "merges.txt")
    model = _parse(folder / "vocab.json", lambda vocab: models.BPE.from_file(vocab, merges))
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(_QWEN2_WORDS), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    backend.decoder = decoders.ByteLevel()
    _add_missing(backend, _listed_tokens(folder, config), "vocab.json")
    return backend


def _listed_tokens(folder: Path, config: Mapping[str, Any]) -> dict[int, AddedToken]:
    """Added tokens by id, of tokenizer_config.json or (before transformers 4.34) of added_tokens.json."""
    listed = config.get("added_tokens_decoder")
    if not listed:
        specials = {content_of(token) for name, token in config.items() if name.endswith("_token")}
        specials |= {content_of(token) for token in config.get("additional_special_tokens") or []}
        ids = read_json(folder / "added_tokens.json")
        listed = {token_id: {"content": text, "special": text in specials} for text, token_id in ids.items()}
    return _added_tokens(folder, listed)


def _added_tokens(folder: Path, listed: Any) -> dict[int, AddedToken]:
    """Entries of `added_tokens_decoder`, in the order of their ids."""
    try:
        entries = {int(token_id): entry for token_id, entry in listed.items() if content_of(entry)}
    except (AttributeError, TypeError, ValueError):
        raise ConfigError(f"{folder.name}: the added tokens of the tokenizer must be objects by token id") from None
    return {
        token_id: AddedToken(content_of(entry), **{flag: bool(entry[flag]) for flag in _FLAGS if flag in entry})
        for token_id, entry in sorted(entries.items())
    }


def _add_missing(backend: tokenizers.Tokenizer, listed: Mapping[int, AddedToken], file: str) -> None:
    """Add the listed tokens that `file` does not know, in the order of their ids."""
    for token_id, token in listed.items():
        if backend.token_to_id(token.content) is not None:
            continue
        backend.add_special_tokens([token]) if token.special else backend.add_tokens([token])
        if backend.token_to_id(token.content) != token_id:
            _log.warning("tokenizer_config.json gives %r the id %d, but %s has another", token.content, token_id, file)


def find_chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
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
