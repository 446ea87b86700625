"""Values that Python code passes, held against type hints."""

from __future__ import annotations

from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_args, get_origin

import numpy as np
import pytest
import torch

from trifocal.config.arguments import fit, hints_of, may_be_none, without_none
from trifocal.config.engine import EngineArgs
from trifocal.config.server import ServerArgs
from trifocal.errors import ConfigError


@pytest.mark.parametrize(
    ("hint", "value", "fitted"),
    [
        (int, np.int64(3), 3),
        (float, 3, 3.0),
        (float, np.float32(0.5), 0.5),
        (int | None, None, None),
        (bool, 0, False),
        (str, Path("a/b"), "a/b"),
        (str, torch.bfloat16, "bfloat16"),
        (list[str] | None, ("a", "b"), ["a", "b"]),
        (list[str], "a", ["a"]),
        (list[int], (1, 2), [1, 2]),
        (dict[str, Any], {"a": [1]}, {"a": [1]}),
    ],
)
def test_values_that_fit(hint: Any, value: Any, fitted: Any) -> None:
    got = fit("x", hint, value)
    assert got == fitted and type(got) is type(fitted)


@pytest.mark.parametrize(
    ("hint", "value", "message"),
    [
        (int, "8", "x must be an integer, got '8'"),
        (int, True, "x must be an integer, got True"),
        (int, 8.0, "x must be an integer, got 8.0"),
        (int | None, "8", "x must be an integer or None, got '8'"),
        (float, "0.9", "x must be a number, got '0.9'"),
        (bool, "false", "x must be True or False, got 'false'"),
        (bool, 2, "x must be True or False, got 2"),
        (str, 3, "x must be a string, got 3"),
        (str, None, "x must be a string, got None"),
        (list[str], 3, "x must be a list of strings, got 3"),
        (list[str], ["a", 3], r"x\[1\] must be a string, got 3"),
        (list[int], ["a"], r"x\[0\] must be an integer, got 'a'"),
        (dict[str, Any], [1], r"x must be a dict with string keys, got \[1\]"),
        (dict[str, Any], {1: 2}, "x must be a dict with string keys, got {1: 2}"),
    ],
)
def test_values_that_do_not(hint: Any, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}$"):
        fit("x", hint, value)


@pytest.mark.parametrize("cls", [EngineArgs, ServerArgs])
def test_every_field_is_held_against_its_type(cls: Any) -> None:
    """By one rule: a value of a wrong type is refused whatever the field."""
    required = {item.name: "x" for item in fields(cls) if item.default is item.default_factory is MISSING}
    for name, hint in hints_of(cls).items():
        kind = without_none(hint)
        wrong: Any = "x" if kind in (int, float, bool) or get_origin(kind) is dict else 3
        with pytest.raises(
            ConfigError, match=f"^{name} must be .* or None, got" if may_be_none(hint) else f"^{name} must be"
        ):
            cls(**{**required, name: wrong})
        assert kind in (int, float, bool, str) or get_args(kind)
