"""`Registry`: lazy import, clear error, entries added later."""

from __future__ import annotations

import fractions
import sys

import pytest

from trifocal.errors import ConfigError
from trifocal.registry import Registry


def test_an_entry_is_imported_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    registry: Registry[object] = Registry("thing", {"a": "fractions:Fraction", "b": "colorsys:rgb_to_hsv"})
    assert registry.get("a") is fractions.Fraction
    assert "colorsys" not in sys.modules
    assert callable(registry.get("b"))
    assert "colorsys" in sys.modules


def test_unknown_names_list_the_known_ones() -> None:
    registry: Registry[object] = Registry("thing", {"b": "x:y", "a": "x:y"})
    with pytest.raises(ConfigError, match="unknown thing 'c'; known: a, b"):
        registry.get("c")
    with pytest.raises(ConfigError, match="known: none"):
        Registry("thing").get("c")


def test_register_adds_and_replaces() -> None:
    registry: Registry[object] = Registry("thing")
    assert "a" not in registry
    registry.register("a", "fractions:Fraction")
    registry.register("a", "decimal:Decimal")
    assert "a" in registry and list(registry) == ["a"]
    assert registry.get("a").__name__ == "Decimal"  # type: ignore[attr-defined]
