"""Writes docs/configuration.md from the code: `python -m tools.configuration`. A test compares the two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from trifocal.cli.flags import SHORT, flag_of
from trifocal.config.arguments import without_none
from trifocal.config.engine import EngineArgs, envs
from trifocal.config.server import ServerArgs
from trifocal.config.vllm_options import OPTIONS, PYTHON_OPTIONS, VllmOption

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
OPENING = """# Configuration

This page is written by `python -m tools.configuration` from the code; edit the help texts there.

## Flags

The same for `trifocal serve PATH` and `python -m trifocal.entrypoints.openai.api_server --model PATH`. Those of the
engine are keywords of `LLM(...)` too, with underscores. Flags may be written with hyphens or underscores, with `=` or a
space. A boolean is `--flag`, `--no-flag` or `--flag=false`. An integer may end in k, m, g (thousands) or K, M, G
(1024s). JSON may be given as `'{"image": 4}'` or, where it is flat, as `image=4,video=1`, or key by key:
`--compilation-config.cudagraph_mode NONE`, `--compilation-config.cudagraph_capture_sizes+ 1,2,4`. `None` stands for an
absent value. An unknown flag is an error.

`--config FILE` reads flags from a YAML file, by their names without the hyphens before them. The command line wins:

```yaml
model: /models/Qwen2.5-VL-3B-Instruct
max-model-len: 8192
trust-remote-code: true
served-model-name: [qwen, qwen2.5-vl]
limit-mm-per-prompt: {image: 4}
```
"""
IGNORED_OPENING = """
## Flags of vLLM without effect

Start scripts and programs made for vLLM carry these; they are accepted, with a note, because no answer depends on them.
As keywords of `LLM(...)` they are accepted as well; names without hyphens are keywords of `LLM(...)` alone.

| flags | why |
|---|---|
"""
REFUSED_OPENING = """
## Flags of vLLM that are refused

These ask for something that is not here; they are an error that says so, on the command line and as keywords of
`LLM(...)`. Accepted is what asks for nothing: `--no-enable-lora`, `enable_lora=False`, an empty value, `None`, and the
values that are listed.

| flags | accepted | why |
|---|---|---|
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
            names = _names(item.name, item.metadata.get("also", ()))
            row = f"| {names} | {_kind(item, hints)} | {_default(item)} | {item.metadata['help']} |"
            groups.setdefault(item.metadata["group"], []).append(row)
    for group, rows in groups.items():
        text += f"\n### {group.capitalize()}\n\n| flag | value | default | meaning |\n|---|---|---|---|\n"
        text += "\n".join(rows) + "\n"
    options = (*OPTIONS, *PYTHON_OPTIONS)
    text += IGNORED_OPENING + _option_rows([option for option in options if option.neutral is None])
    text += REFUSED_OPENING + _option_rows([option for option in options if option.neutral is not None])
    text += ENVS_OPENING
    for env in envs.ALL:
        text += f"| `{env.name}` | {'' if env.default is None else env.default} | {env.meaning} |\n"
    return text


def _option_rows(options: list[VllmOption]) -> str:
    """Rows of the options, those of one reason together; of those that may be refused with what is accepted."""
    rows: dict[str, list[str]] = {}
    for option in options:
        ending = f" {option.why} |\n"
        if option.neutral is not None:
            ending = (
                f" {', '.join(str(value) for value in option.neutral if value not in (False, '', {}, []))} |" + ending
            )
        is_keyword = option in PYTHON_OPTIONS
        rows.setdefault(ending, []).append(f"`{option.name}=`" if is_keyword else _names(option.name))
    return "".join(f"| {', '.join(names)} |{ending}" for ending, names in rows.items())


def _names(name: str, also: Sequence[str] = ()) -> str:
    shorts = [SHORT[name]] if name in SHORT else []
    return ", ".join(f"`{flag}`" for flag in [*map(flag_of, (name, *also)), *shorts])


def _kind(item: Any, hints: dict[str, Any]) -> str:
    if item.metadata.get("choices"):
        return ", ".join(item.metadata["choices"])
    kind = without_none(hints[item.name])
    if get_origin(kind) is dict:
        return "JSON"
    if get_origin(kind) is list:
        return "integers" if get_args(kind) == (int,) else "names"
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
