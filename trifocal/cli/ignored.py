"""vLLM flags that Trifocal does not have, on the command line: accepted with a note, or refused by name.

Which they are, and why: `trifocal.config.vllm_options`. The help shows none of them.
"""

from __future__ import annotations

import argparse
from typing import Any

from trifocal.cli.flags import SHORT, flag_of, kind_options, or_none
from trifocal.config.vllm_options import OPTIONS, UNUSED_FIELDS, VllmOption


def add_ignored_flags(parser: argparse.ArgumentParser) -> None:
    """Let `parser` accept every flag of the table."""
    for option in OPTIONS:
        names = [SHORT[option.name]] if option.name in SHORT else []
        options: dict[str, Any] = {**kind_options(option.kind), "default": argparse.SUPPRESS}
        options |= {"dest": _dest(option), "help": argparse.SUPPRESS}
        if "type" in options:  # vLLM takes both for an absent value
            options["type"] = or_none(options["type"], {"", "None"})
        if option.name == "hf_token":  # without a value it means: the one that was saved
            options |= {"nargs": "?", "const": True}
        parser.add_argument(*names, flag_of(option.name), **options)


def notes(namespace: argparse.Namespace) -> list[str]:
    """One line for each flag that was given and has no effect.

    Raises `NotAvailableYetError` for one that asks for something that is not here.
    """
    found = []
    for option in OPTIONS:
        if hasattr(namespace, _dest(option)):
            value, flag = getattr(namespace, _dest(option)), flag_of(option.name)
            written = flag if option.kind is bool else f"{flag} {value}"[:200]
            found.append(option.note(value, written, flag))
    unused = [
        f"{flag_of(name)} has no effect: {why}" for name, why in UNUSED_FIELDS.items() if hasattr(namespace, name)
    ]
    return [note for note in found if note is not None] + unused


def _dest(option: VllmOption) -> str:
    return f"ignored_{option.name}"
