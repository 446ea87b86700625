"""Flags made from dataclasses, written as users of vLLM write them.

`add_flags(parser, EngineArgs)` turns each field into a flag by its type and metadata (group, help, choices), and
`build(EngineArgs, namespace)` makes the object of what was given. Flags may be written with hyphens or underscores,
with `=` or a space; `--flag`, `--no-flag` and `--flag=true` all work for booleans. A key of a JSON flag may be given
alone, `--flag.key value` (`--flag.list+ a,b` adds to a list), and flags may stand in a file (`cli.config_file`).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, fields
from difflib import get_close_matches
from shutil import get_terminal_size
from typing import Any, NoReturn, TypeVar, get_args, get_origin

from trifocal.cli.config_file import read_flags
from trifocal.config.arguments import hints_of, may_be_none, without_none
from trifocal.errors import ConfigError

T = TypeVar("T")

_TRUE = ("true", "yes", "on", "1")
_FALSE = ("false", "no", "off", "0")
SHORT = {  # vLLM's
    "tensor_parallel_size": "-tp",
    "pipeline_parallel_size": "-pp",
    "quantization": "-q",
    "compilation_config": "-cc",
    "data_parallel_size": "-dp",
    "data_parallel_size_local": "-dpl",
    "data_parallel_rank": "-dpn",
    "data_parallel_start_rank": "-dpr",
    "data_parallel_address": "-dpa",
    "data_parallel_rpc_port": "-dpp",
    "data_parallel_backend": "-dpb",
    "decode_context_parallel_size": "-dcp",
    "prefill_context_parallel_size": "-pcp",
    "enable_expert_parallel": "-ep",
    "attention_config": "-ac",
    "speculative_config": "-sc",
    "api_server_count": "-asc",
    "nnodes": "-n",
    "node_rank": "-r",
}
_SUFFIXES = {"k": 10**3, "K": 2**10, "m": 10**6, "M": 2**20, "g": 10**9, "G": 2**30, "t": 10**12, "T": 2**40}


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str, **kwargs: Any) -> None:
        width = min(max(get_terminal_size().columns, 80), 120)
        super().__init__(prog, max_help_position=36, width=width, **kwargs)


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that accepts vLLM's spellings and answers an unknown flag with the nearest known one."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_HelpFormatter, **kwargs)
        self._source = ""  # the file that is read, for messages

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As in argparse, after the spelling of the flags was put in order; then a `--config` file is read."""
        keyed: dict[str, dict[str, Any]] = {}
        words = self._normalise(deque(sys.argv[1:] if args is None else args), keyed)
        namespace, rest = super().parse_known_args(words, namespace)
        for dest, values in keyed.items():
            setattr(namespace, dest, _merged(getattr(namespace, dest, {}), values))
        path = getattr(namespace, "config", None)
        if path is not None:
            self._fill_from_file(namespace, path)
        return namespace, rest

    def add_config_flag(self) -> None:
        """Add `--config`. Every other flag of this parser must stay out of the namespace where it is not given."""
        self.add_argument(
            "--config",
            default=argparse.SUPPRESS,
            metavar="FILE",
            help="YAML file of flags, by their names without the hyphens; the command line wins",
        )

    def error(self, message: str) -> NoReturn:
        """One line on stderr and exit status 2; the usage of fifty flags would only hide it."""
        self.exit(2, f"{self.prog}: error: {self._source}{message}\n")

    def _fill_from_file(self, namespace: argparse.Namespace, path: str) -> None:
        try:
            words = read_flags(path)
        except ConfigError as error:
            self.error(str(error))
        self._source = f"--config {path}: "
        found = vars(self.parse_args(words))
        self._source = ""
        if getattr(namespace, "model_path", None) is not None:  # --model by its other name
            found.pop("model", None)
        for name, value in found.items():
            if not hasattr(namespace, name):
                setattr(namespace, name, value)

    def _normalise(self, args: deque[str], keyed: dict[str, dict[str, Any]]) -> list[str]:
        """The words as argparse knows them. `--flag.key value` is taken out of them into `keyed`, by destination."""
        result: list[str] = []
        while args:
            word = self._optimization(args.popleft(), args)
            if word == "--":
                return [*result, word, *args]
            base = word.partition("=")[0].partition(".")[0]
            if base != word.partition("=")[0] and (word.startswith("--") or base in self._option_string_actions):
                self._take_key(word, args, keyed)
            else:
                result += self._flag(word) if word.startswith("--") else self._value(result, word)
        return result

    def _optimization(self, word: str, args: deque[str]) -> str:
        """vLLM's `-O3` and `-O 3` are a level; `-O '{...}'` and `-O.key value` were --compilation-config."""
        if not word.startswith("-O") or "--optimization-level" not in self._option_string_actions:
            return word
        rest = word[2:].removeprefix("=") or (args.popleft() if args else "")
        if rest.startswith("."):
            return f"--compilation-config{rest}"
        return f"--{'compilation-config' if rest.startswith('{') else 'optimization-level'}={rest}"

    def _take_key(self, word: str, args: deque[str], keyed: dict[str, dict[str, Any]]) -> None:
        name, equals, value = word.partition("=")
        base, _, path = name.partition(".")
        action = self._action(base)
        if not isinstance(action, _Json):
            self.error(f"argument {base}: it takes no keys, got {name}")
        if not equals:
            if not args:
                self.error(f"argument {name}: expected one argument")
            value = args.popleft()
        *parents, last = path.split(".")
        place = keyed.setdefault(action.dest, {})
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                self.error(f"argument {name}: {parent} already has a value")
        if last.endswith("+"):
            last, items = last[:-1], [_loose(item) for item in value.split(",")]
            place[last] = [*place.get(last, ()), *items]
        else:
            place[last] = _loose(value)

    def _flag(self, word: str) -> list[str]:
        name, equals, value = word.partition("=")
        if name == "--help":  # vLLM's --help=GROUP: there is one help
            return [name]
        action, name = self._action(name), name.replace("_", "-")
        if equals and isinstance(action, argparse.BooleanOptionalAction):
            return [self._boolean(name, value)]
        return [name + equals + value]

    def _action(self, name: str) -> argparse.Action:
        """What a flag does, however it is spelled; an unknown one ends the program."""
        known = name.replace("_", "-") if name.startswith("--") else name
        action = self._option_string_actions.get(known)
        if action is None:
            flags = {flag.lstrip("-"): flag for flag in self._known_flags()}  # hyphens would make any two look alike
            near = get_close_matches(known.lstrip("-"), flags, n=1)
            self.error(f"unknown flag {known}" + (f"; did you mean {flags[near[0]]}?" if near else "; see --help"))
        return action

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
    hints = hints_of(cls)
    groups: dict[str, Any] = {str(group.title): group for group in parser._action_groups}
    for item in fields(cls):
        if item.name in skip:
            continue
        title = item.metadata["group"]
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        names = [flag_of(name) for name in (item.name, *item.metadata.get("also", ()))]
        if item.name in SHORT:
            names.insert(0, SHORT[item.name])
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
            words += [flag, *map(str, value)]
        else:
            words.append(f"{flag}={value}")
    return words


def _options(item: Field[Any], hint: Any) -> dict[str, Any]:
    """Keywords of `add_argument` for one field."""
    text = item.metadata["help"].replace("%", "%%")
    default = _default(item)
    if default not in (None, {}, [], MISSING) and "default" not in text:
        text += f" (default: {default})"
    options = {"help": text, **kind_options(without_none(hint), number_is=item.metadata.get("number_is"))}
    none_words = {str(value) for value in item.metadata.get("means_none", ())} | (
        {"None"} if may_be_none(hint) else set()
    )
    choices = item.metadata.get("choices")
    if choices:
        shown = "{" + ",".join(choices) + "}"
        options |= {"choices": [*choices, None] if may_be_none(hint) else choices, "metavar": shown}
    if none_words and "type" in options:
        options["type"] = or_none(options["type"], none_words)
    return options


def kind_options(kind: Any, *, number_is: str | None = None) -> dict[str, Any]:
    """Keywords of `add_argument` for a value of type `kind`; in place of JSON a number may stand for one key."""
    if kind is bool:
        return {"action": _Boolean}
    if kind is list or get_origin(kind) is list:
        item = int if get_args(kind) == (int,) else str
        return {"nargs": "+", "action": _List, "item": item, "metavar": "N" if item is int else "NAME"}
    if kind is dict or get_origin(kind) is dict:
        parse = _or_number(number_is) if number_is else json_object
        return {"action": _Json, "type": parse, "metavar": "JSON"}
    parse, metavar = _KINDS[kind]
    return {"type": parse, "metavar": metavar}


def or_none(parse: Callable[[str], Any], none_words: set[str]) -> Callable[[str], Any]:
    """`parse`, for which `none_words` stand for None."""
    return _named(lambda text: None if text in none_words else parse(text), parse)


def _or_number(key: str) -> Callable[[str], Any]:
    return _named(lambda text: {key: int(text)} if text.isdecimal() else json_object(text), json_object)


def _named(function: Callable[[str], Any], like: Callable[[str], Any]) -> Callable[[str], Any]:
    function.__name__ = like.__name__  # argparse's messages name it
    return function


class _List(argparse.Action):
    """Words after one flag, the same flag several times, or one JSON list (as vLLM writes origins): all one list."""

    def __init__(self, option_strings: Sequence[str], dest: str, item: type, **kwargs: Any) -> None:
        super().__init__(option_strings, dest, **kwargs)
        self._item = item

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any) -> None:
        items: list[Any] = list(getattr(namespace, self.dest, ()))
        for word in values:
            items += self._of_json(word) if word.startswith("[") else [self._of_word(word)]
        setattr(namespace, self.dest, items)

    def _of_json(self, word: str) -> list[Any]:
        try:
            items = json.loads(word)
        except json.JSONDecodeError as error:
            raise argparse.ArgumentError(self, f"not JSON ({error}): {word!r}") from None
        if not all(type(item) is self._item for item in items):
            kind = "integers" if self._item is int else "strings"
            raise argparse.ArgumentError(self, f"expected a list of {kind}, got {word!r}")
        return list(items)

    def _of_word(self, word: str) -> Any:
        try:
            return integer(word) if self._item is int else word
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentError(self, str(error)) from None


class _Json(argparse.Action):
    """A JSON object, whose keys may be given one by one, too."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any) -> None:
        setattr(namespace, self.dest, values)


class _Boolean(argparse.BooleanOptionalAction):
    """`--flag` and `--no-flag`. Its own class because the standard one appends a default to the help text."""

    def __init__(self, option_strings: Sequence[str], dest: str, default: Any, help: str) -> None:
        super().__init__(option_strings, dest, default=default)
        self.help = help


def _default(item: Field[Any]) -> Any:
    return item.default if item.default_factory is MISSING else item.default_factory()


def integer(text: str) -> int:
    """An integer of 64 bits; as in vLLM `32k` is 32000 and `32K` is 32768."""
    scale = _SUFFIXES.get(text[-1:], 1)
    try:
        value = int(text) if scale == 1 else int(float(text[:-1]) * scale)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"expected an integer, got {text!r}") from None
    if not -(1 << 63) <= value < 1 << 63:
        raise argparse.ArgumentTypeError(f"expected an integer of at most 64 bits, got {text!r}")
    return value


def number(text: str) -> float:
    """A number."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, got {text!r}") from None


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


def _merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """`new` over `old`, objects in them likewise."""
    both = {name: _merged(old[name], new[name]) for name in old.keys() & new.keys() if _are_dicts(old[name], new[name])}
    return {**old, **new, **both}


def _are_dicts(*values: Any) -> bool:
    return all(isinstance(value, dict) for value in values)


def _loose(text: str) -> Any:
    """A value without a type of its own: JSON, an integer like 32k, else text."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        pass
    try:
        return integer(text)
    except argparse.ArgumentTypeError:
        return text


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


_KINDS: dict[type, tuple[Callable[[str], Any], str]] = {int: (integer, "N"), float: (number, "X"), str: (str, "TEXT")}
