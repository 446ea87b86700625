"""Flags made from dataclasses, written as users of vLLM write them.

`add_flags(parser, EngineArgs)` turns each field into a flag by its type and metadata (group, help, choices), and
`build(EngineArgs, namespace)` makes the object of what was given. Flags may be written with hyphens or underscores,
with `=` or a space; `--flag`, `--no-flag` and `--flag=true` all work for booleans.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, fields
from difflib import get_close_matches
from shutil import get_terminal_size
from types import NoneType, UnionType
from typing import Any, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

_TRUE = ("true", "yes", "on", "1")
_FALSE = ("false", "no", "off", "0")
_SHORT = {"tensor_parallel_size": ["-tp"], "pipeline_parallel_size": ["-pp"], "quantization": ["-q"]}  # vLLM's
_SUFFIXES = {"k": 10**3, "K": 2**10, "m": 10**6, "M": 2**20, "g": 10**9, "G": 2**30}


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str, **kwargs: Any) -> None:
        width = min(max(get_terminal_size().columns, 80), 120)
        super().__init__(prog, max_help_position=36, width=width, **kwargs)


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that accepts vLLM's spellings and answers an unknown flag with the nearest known one."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_HelpFormatter, **kwargs)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As in argparse, after the spelling of the flags was put in order."""
        return super().parse_known_args(self._normalise(sys.argv[1:] if args is None else list(args)), namespace)

    def error(self, message: str) -> NoReturn:
        """One line on stderr and exit status 2; the usage of fifty flags would only hide it."""
        self.exit(2, f"{self.prog}: error: {message}\n")

    def _normalise(self, args: Sequence[str]) -> list[str]:
        result: list[str] = []
        for index, word in enumerate(args):
            if word == "--":
                return [*result, *args[index:]]
            result += self._flag(word) if word.startswith("--") else self._value(result, word)
        return result

    def _flag(self, word: str) -> list[str]:
        name, equals, value = word.partition("=")
        name = name.replace("_", "-")
        action = self._option_string_actions.get(name)
        if action is None:
            near = get_close_matches(name, self._known_flags(), n=1)
            self.error(f"unknown flag {name}" + (f"; did you mean {near[0]}?" if near else "; see --help"))
        if equals and isinstance(action, argparse.BooleanOptionalAction):
            return [self._boolean(name, value)]
        return [name + equals + value]

    def _known_flags(self) -> list[str]:
        """The flags worth proposing: those that the help shows."""
        shown = (action for action in self._actions if action.help is not argparse.SUPPRESS)
        return [flag for action in shown for flag in action.option_strings]

    def _value(self, before: list[str], word: str) -> list[str]:
        """A value; `--flag true` of a boolean is folded into the flag before it."""
        if before and word.lower() in ("true", "false"):
            action = self._option_string_actions.get(before[-1])
            if isinstance(action, argparse.BooleanOptionalAction):
                return [self._boolean(before.pop(), word)]
        return [word]

    def _boolean(self, name: str, value: str) -> str:
        if value.lower() not in _TRUE + _FALSE:
            self.error(f"argument {name}: expected true or false, got {value!r}")
        is_negated = name.startswith("--no-")
        plain = "--" + name.removeprefix("--no-" if is_negated else "--")
        return plain if (value.lower() in _TRUE) != is_negated else "--no-" + plain.removeprefix("--")


def add_flags(parser: argparse.ArgumentParser, cls: type, *, skip: Sequence[str] = ()) -> None:
    """Add a flag for each field of the dataclass `cls`, in groups. What is not given stays out of the namespace."""
    hints = get_type_hints(cls)
    groups: dict[str, Any] = {str(group.title): group for group in parser._action_groups}
    for item in fields(cls):
        if item.name in skip:
            continue
        title = item.metadata["group"]
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        names = [*_SHORT.get(item.name, ()), flag_of(item.name)]
        groups[title].add_argument(
            *names, dest=item.name, default=argparse.SUPPRESS, **_options(item, hints[item.name])
        )


def flag_of(field_name: str) -> str:
    """`max_num_seqs` -> `--max-num-seqs`."""
    return "--" + field_name.replace("_", "-")


def build(cls: type[T], namespace: argparse.Namespace) -> T:
    """The dataclass with the values that were given; the others keep their defaults."""
    names = {item.name for item in fields(cls)}  # type: ignore[arg-type]  # every caller passes a dataclass
    return cls(**{name: value for name, value in vars(namespace).items() if name in names})


def to_words(cls: type, namespace: argparse.Namespace) -> list[str]:
    """The flags of `cls` that were given, written out again for a process of our own (`model` excepted)."""
    words: list[str] = []
    for item in fields(cls):
        if item.name == "model" or not hasattr(namespace, item.name):
            continue
        flag, value = flag_of(item.name), getattr(namespace, item.name)
        if isinstance(value, bool):
            words.append(flag if value else "--no-" + flag.removeprefix("--"))
        elif isinstance(value, dict):
            words.append(f"{flag}={json.dumps(value)}")
        elif isinstance(value, list):
            words += [flag, *value]
        else:
            words.append(f"{flag}={value}")
    return words


def _options(item: Field[Any], hint: Any) -> dict[str, Any]:
    """Keywords of `add_argument` for one field."""
    kind = without_none(hint)
    text = item.metadata["help"].replace("%", "%%")
    default = _default(item)
    if default not in (None, {}, [], MISSING) and "default" not in text:
        text += f" (default: {default})"
    options: dict[str, Any] = {"help": text}
    if kind is bool:
        return {**options, "action": _Boolean}
    if get_origin(kind) is list:
        return {**options, "nargs": "+", "action": _Names, "metavar": "NAME"}
    if get_origin(kind) is dict:
        return {**options, "type": json_object, "metavar": "JSON"}
    choices = item.metadata.get("choices")
    if choices:
        return {**options, "choices": choices, "metavar": "{" + ",".join(choices) + "}"}
    parse, metavar = _KINDS[kind]
    return {**options, "type": parse, "metavar": metavar}


class _Names(argparse.Action):
    """Words after one flag, the same flag several times, or one JSON list (as vLLM writes origins): all one list."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any) -> None:
        names: list[str] = list(getattr(namespace, self.dest, ()))
        for word in values:
            names += self._of_json(word) if word.startswith("[") else [word]
        setattr(namespace, self.dest, names)

    def _of_json(self, word: str) -> list[str]:
        try:
            names = json.loads(word)
        except json.JSONDecodeError as error:
            raise argparse.ArgumentError(self, f"not JSON ({error}): {word!r}") from None
        if not all(isinstance(name, str) for name in names):
            raise argparse.ArgumentError(self, f"expected a list of strings, got {word!r}")
        return list(names)


class _Boolean(argparse.BooleanOptionalAction):
    """`--flag` and `--no-flag`. Its own class because the standard one appends a default to the help text."""

    def __init__(self, option_strings: Sequence[str], dest: str, default: Any, help: str) -> None:
        super().__init__(option_strings, dest, default=default)
        self.help = help


def without_none(hint: Any) -> Any:
    """`int | None` -> `int`."""
    if get_origin(hint) in (Union, UnionType):
        [kind] = [part for part in get_args(hint) if part is not NoneType]
        return kind
    return hint


def _default(item: Field[Any]) -> Any:
    return item.default if item.default_factory is MISSING else item.default_factory()


def integer(text: str) -> int:
    """An integer; as in vLLM `32k` is 32000 and `32K` is 32768."""
    scale = _SUFFIXES.get(text[-1:], 1)
    try:
        return int(text) if scale == 1 else int(float(text[:-1]) * scale)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"expected an integer, got {text!r}") from None


def json_object(text: str) -> dict[str, Any]:
    """A JSON object, or vLLM's older `image=4,video=1`."""
    if "=" in text and not text.lstrip().startswith("{"):
        return _pairs(text)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"not JSON ({error}): {text!r}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"expected a JSON object like '{{\"name\": 1}}', got {text!r}")
    return value


def _pairs(text: str) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        try:
            result[name.strip()] = json.loads(value)
        except json.JSONDecodeError:
            equals = ""
        if not equals or not name.strip():
            raise argparse.ArgumentTypeError(f"expected JSON or name=value,name=value, got {text!r}")
    return result


_KINDS: dict[type, tuple[Callable[[str], Any], str]] = {int: (integer, "N"), float: (float, "X"), str: (str, "TEXT")}
