"""`--config FILE`: flags in a YAML file, as vLLM reads them: names without the hyphens before them, objects nested."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trifocal.errors import ConfigError


def read_flags(path: str) -> list[str]:
    """The words of the command line that the file stands for. Raises `ConfigError`."""
    import yaml  # takes its time, and few commands need it

    class Loader(yaml.SafeLoader):  # type: ignore[misc]  # it comes without types
        """Refuses a name that is given twice: YAML's own readers take the last one without a word."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            names = [key.value for key, _ in node.value]
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise yaml.constructor.ConstructorError(
                    problem=f"{twice!r} is given twice", problem_mark=node.start_mark
                )
            return dict(super().construct_mapping(node, deep))

    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
        flags = yaml.load(text, Loader)  # a SafeLoader: it makes plain values alone
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"--config {path} cannot be read: {' '.join(str(error).split())}") from None
    if flags is None:
        return []
    if not isinstance(flags, dict) or not all(isinstance(name, str) for name in flags):
        raise ConfigError(f"--config {path}: expected one flag and its value in each line, e.g. port: 8000")
    if "config" in flags:
        raise ConfigError(f"--config {path}: a file of flags cannot name another one in config")
    # None stands for the default, as it does for LLM(...).
    return [f"--{name}={_word(value)}" for name, value in flags.items() if value is not None]


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):  # names; they are strings on the command line, too
        return json.dumps([item if isinstance(item, str | dict) else str(item) for item in value])
    return json.dumps(value) if isinstance(value, dict) else str(value)
