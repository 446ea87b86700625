"""Values of arguments, held against the type hints of their dataclass: the same for every field, no code for one alone.

The command line makes values of the right type itself (`cli.flags`); these checks are for what Python code passes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from trifocal.errors import ConfigError

_WORDS = {bool: "True or False", int: "an integer", float: "a number", str: "a string"}


@cache
def hints_of(cls: Any) -> dict[str, Any]:
    """The types of a dataclass's fields, by name."""
    return get_type_hints(cls)


def fit_fields(args: Any) -> None:
    """Hold every field of a frozen dataclass against its hint, from `__post_init__`. Raises `ConfigError` naming it.

    Numbers of other libraries become Python's, paths and torch's dtypes become strings, tuples become lists.
    """
    cls: Any = type(args)
    for name, hint in hints_of(cls).items():
        object.__setattr__(args, name, fit(name, hint, getattr(args, name)))


def fit(name: str, hint: Any, value: Any) -> Any:
    """`value` as the type that `hint` names. Raises `ConfigError` naming the argument and what it takes."""
    if value is None and may_be_none(hint):
        return None
    kind = without_none(hint)
    if get_origin(kind) is list:
        items = [value] if isinstance(value, str) else value
        if isinstance(items, list | tuple):
            [item_kind] = get_args(kind)
            return [fit(f"{name}[{index}]", item_kind, item) for index, item in enumerate(items)]
    elif get_origin(kind) is dict:
        if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            return dict(value)
    elif kind is bool:
        if isinstance(value, bool) or (type(value) is int and value in (0, 1)):
            return bool(value)
    elif not isinstance(value, bool):
        if kind is int and isinstance(value, Integral):
            return _in_64_bits(name, int(value))
        if kind is float and isinstance(value, Real):
            return float(value)
        if kind is str and isinstance(value, str | os.PathLike):
            return str(os.fspath(value))
        if kind is str and type(value).__name__ == "dtype":  # torch's, which is not imported here: by its name
            return str(value).rpartition(".")[2]
    raise ConfigError(f"{name} must be {_words(kind)}{' or None' if may_be_none(hint) else ''}, got {value!r:.200}")


def _in_64_bits(name: str, value: int) -> int:
    if not -(1 << 63) <= value < 1 << 63:
        raise ConfigError(f"{name} must be an integer of at most 64 bits, got {value}")
    return value


def without_none(hint: Any) -> Any:
    """`int | None` -> `int`."""
    if get_origin(hint) in (Union, UnionType):
        [kind] = [part for part in get_args(hint) if part is not NoneType]
        return kind
    return hint


def may_be_none(hint: Any) -> bool:
    """Whether None is a value of its own, e.g. of `int | None`."""
    return NoneType in get_args(hint)


def _words(kind: Any) -> str:
    if get_origin(kind) is list:
        return "a list of strings" if get_args(kind) == (str,) else "a list of integers"
    return "a dict with string keys" if get_origin(kind) is dict else _WORDS[kind]
