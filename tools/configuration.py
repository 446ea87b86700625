"""Writes docs/configuration.md from the code: `python -m tools.configuration`. A test compares the two."""

from __future__ import annotations

from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from trifocal import envs
from trifocal.cli.flags import flag_of, without_none
from trifocal.cli.ignored import IGNORED
from trifocal.config import EngineArgs
from trifocal.server.args import ServerArgs

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
OPENING = """# Configuration

This page is written by `python -m tools.configuration` from the code; edit the help texts there.

## Flags

The same for `trifocal serve PATH` and `python -m trifocal.entrypoints.openai.api_server --model PATH`. Those of the
engine are keywords of `LLM(...)` too, with underscores. Flags may be written with hyphens or underscores, with `=` or a
space. A boolean is `--flag`, `--no-flag` or `--flag=false`. An integer may end in k, m, g (thousands) or K, M, G
(1024s). JSON may be given as `'{"image": 4}'` or, where it is flat, as `image=4,video=1`. An unknown flag is an error.
"""
IGNORED_OPENING = """
## Flags without effect

Start scripts made for vLLM carry these; they are accepted, with a note, because no answer depends on them. Where values
are listed, only those are accepted.
"""
ENVS_OPENING = """
## Environment variables

Each is read as `TRIFOCAL_NAME`, then as `VLLM_NAME`. `PYTORCH_CUDA_ALLOC_CONF` and `PYTORCH_NPU_ALLOC_CONF` go to the
device's allocator untouched.

| NAME | default | meaning |
|---|---|---|
"""


def page() -> str:
    """The whole page."""
    text = OPENING
    groups: dict[str, list[str]] = {}
    for cls in (ServerArgs, EngineArgs):
        hints = get_type_hints(cls)
        for item in fields(cls):
            row = f"| `{flag_of(item.name)}` | {_kind(item, hints)} | {_default(item)} | {item.metadata['help']} |"
            groups.setdefault(item.metadata["group"], []).append(row)
    for group, rows in groups.items():
        text += f"\n### {group.capitalize()}\n\n| flag | value | default | meaning |\n|---|---|---|---|\n"
        text += "\n".join(rows) + "\n"
    text += IGNORED_OPENING + "\n| flag | values | why |\n|---|---|---|\n"
    for flag in IGNORED:
        values = ", ".join(flag.harmless) or ("any" if flag.takes_value else "")
        text += f"| `{flag_of(flag.name)}` | {values} | {flag.why} |\n"
    text += ENVS_OPENING
    for env in envs.ALL:
        text += f"| `{env.name}` | {'' if env.default is None else env.default} | {env.meaning} |\n"
    return text


def _kind(item: Any, hints: dict[str, Any]) -> str:
    if item.metadata.get("choices"):
        return ", ".join(item.metadata["choices"])
    kind = without_none(hints[item.name])
    if get_origin(kind) is dict:
        return "JSON"
    if get_origin(kind) is list:
        return "names"
    return {bool: "", int: "integer", float: "number", str: "text"}[kind]


def _default(item: Any) -> str:
    if item.default is MISSING:
        if item.default_factory is MISSING:
            return "required"
        value = item.default_factory()
        return "{}" if value == {} else " ".join(value)
    if item.default is None:
        return ""
    return {True: "on", False: "off"}.get(item.default, str(item.default)) if item.type == "bool" else str(item.default)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
