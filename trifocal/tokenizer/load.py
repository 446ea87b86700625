"""A checkpoint's tokenizer, from its data files wherever those are enough."""

from __future__ import annotations

from pathlib import Path

from trifocal.tokenizer.folder import find_chat_template, read_backend, read_config
from trifocal.tokenizer.remote import load_remote
from trifocal.tokenizer.tokenizer import Tokenizer


def load_tokenizer(path: str, *, trust_remote_code: bool = False) -> Tokenizer:
    """The tokenizer of a checkpoint folder.

    A tokenizer that is Python code in the folder runs if `trust_remote_code` allows it and there is no other way.
    Raises `ConfigError`.
    """
    folder = Path(path).expanduser().absolute()  # so that "." has a name in messages
    config = read_config(folder)
    template = find_chat_template(folder, config)
    backend = read_backend(folder, config)
    if backend is not None:
        return Tokenizer(backend, config, template)
    return load_remote(folder, config, template, is_trusted=trust_remote_code)
