"""A table of named things whose modules are imported only when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Generic, TypeVar, cast

from trifocal.errors import ConfigError

T = TypeVar("T")


class Registry(Generic[T]):
    """Maps a name to `"module:attribute"`; `kind` names the things in error messages."""

    def __init__(self, kind: str, entries: dict[str, str] | None = None) -> None:
        self.kind = kind
        self._entries: dict[str, str] = dict(entries or {})

    def register(self, name: str, target: str) -> None:
        """Add or replace an entry; `target` is `"module:attribute"` and is not imported yet."""
        self._entries[name] = target

    def get(self, name: str) -> T:
        """Import and return the entry. Raises `ConfigError` naming the known ones."""
        target = self._entries.get(name)
        if target is None:
            raise ConfigError(f"unknown {self.kind} {name!r}; known: {', '.join(sorted(self._entries)) or 'none'}")
        module, _, attribute = target.partition(":")
        return cast(T, getattr(import_module(module), attribute))

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)
