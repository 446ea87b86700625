"""The errors that Trifocal raises on purpose; each says who, which field, what was wrong and what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from string import Formatter


class TrifocalError(Exception):
    """Base of every error that Trifocal raises on purpose."""


class ConfigError(TrifocalError):
    """A flag, an environment variable or a checkpoint folder that cannot be used; the command line exits with 2."""


class ArgumentError(ConfigError):
    """An argument that cannot be used, by itself or together with another one.

    `message` is a format string: `{max_num_seqs}` stands for the name of that argument, `{}` for the next of `values`.
    Names are spelled as flags of the command line, unless the code that shows the error says otherwise (`spell`).
    """

    def __init__(self, message: str, *values: object) -> None:
        super().__init__(message, *values)
        self.message = message
        self.values = values
        self.spell: Callable[[str], str] = as_flag

    def __str__(self) -> str:
        return spelled(self.message, *self.values, spell=self.spell)


class NotAvailableYetError(ArgumentError):
    """A known option whose feature is not built yet: refused, never ignored in silence. `what`: see `ArgumentError`."""

    def __init__(self, what: str, *values: object) -> None:
        super().__init__(f"not available yet: {what}", *values)


def as_flag(name: str) -> str:
    """`max_num_seqs` -> `--max-num-seqs`."""
    return "--" + name.replace("_", "-")


def spelled(message: str, *values: object, spell: Callable[[str], str] = as_flag) -> str:
    """A message as in `ArgumentError`, with its names and values."""
    return Formatter().vformat(message, values, _Names(spell))


@contextmanager
def errors_in_keywords() -> Iterator[None]:
    """An `ArgumentError` raised inside names arguments as a caller of `LLM(...)` writes them."""
    try:
        yield
    except ArgumentError as error:
        error.spell = str
        raise


class _Names(Mapping[str, str]):
    """The names in a message, each spelled when it is asked for."""

    def __init__(self, spell: Callable[[str], str]) -> None:
        self._spell = spell

    def __getitem__(self, name: str) -> str:
        return self._spell(name)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


class RequestError(TrifocalError):
    """A request that is refused; nothing else is disturbed by it.

    `param` names the offending field as the client wrote it, `status` is the HTTP status, `code` a stable word.
    """

    def __init__(self, message: str, *, param: str | None = None, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.status = status
        self.code = code


class EngineDeadError(TrifocalError):
    """The engine is gone, or another process has it; nothing can be generated here any more."""
