"""Arguments as fields of dataclasses: how one is described, held against its type hint, and taken into a config part.

The command line makes values of the right type itself (`cli.flags`); checks of types are for what Python code passes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import MISSING, field, fields
from functools import cache
from math import inf
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from trifocal.config.envs import Env
from trifocal.errors import ArgumentError, ConfigError

T = TypeVar("T")
P = TypeVar("P")
_MOST_GIB = 1 << 30  # an exbibyte: far beyond any machine, and its bytes are still a number for messages

_WORDS = {bool: "True or False", int: "an integer", float: "a number", str: "a string"}


def arg(group: str, meaning: str, default: Any = MISSING, **extra: Any) -> Any:
    """A dataclass field that is also a command-line flag: its group and help text travel in the field's metadata.

    So do `choices`, `also` (other names of the flag), `means_none` (values that stand for None) and `number_is` (the
    key of a JSON object that a number in its place gives).
    """
    metadata = {"group": group, "help": meaning, **extra}
    if default is MISSING:
        return field(metadata=metadata)
    if isinstance(default, dict | list):
        return field(default_factory=lambda: default.copy(), metadata=metadata)
    return field(default=default, metadata=metadata)


def decided() -> Any:
    """A field of a config part in place of the argument that it inherits, whose default is no decision."""
    return field()


def from_env(env: Env[T]) -> T:
    """A field of a config part whose value is an environment variable's when the part is made, and stays that."""
    value: Any = field(default_factory=env.get)
    return cast(T, value)


def part(cls: type[P], source: object, **others: Any) -> P:
    """A config part: fields that `source` has by the same name are taken from there, unless they are in `others`."""
    taken = {item.name: getattr(source, item.name) for item in fields(cast(Any, cls)) if hasattr(source, item.name)}
    return cls(**{**taken, **others})


def at_least_one(name: str, value: int) -> int:
    """`value`. Raises `ArgumentError` if it is below 1."""
    if value < 1:
        raise ArgumentError(f"{{{name}}} must be at least 1, got {{}}", value)
    return value


def above_zero(name: str, value: float) -> float:
    """`value`. Raises `ArgumentError` if it is not above 0, or endless."""
    if not 0 < value < inf:
        raise ArgumentError(f"{{{name}}} must be above 0, got {{}}", value)
    return value


def fits_bytes(name: str, gib: float) -> float:
    """`gib`. Raises `ArgumentError` if it is so large that its bytes are no use as a number."""
    if gib > _MOST_GIB:
        raise ArgumentError(f"{{{name}}} must be at most {{}}, got {{}}", _MOST_GIB, gib)
    return gib


def folder(name: str, path: str) -> str:
    """`path` with `~` replaced. Raises `ArgumentError` if it is no folder."""
    found = Path(path).expanduser()
    if not found.is_dir():
        raise ArgumentError(f"{{{name}}} {{!r}} is not a folder", path)
    return str(found)


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
