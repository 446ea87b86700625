"""`trifocal models`: what can be served, and what each claim rests on."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from shutil import get_terminal_size
from textwrap import wrap
from typing import Any

from trifocal import __version__
from trifocal.cli.flags import Parser
from trifocal.config.model import DTYPES, QUANTIZATIONS
from trifocal.families import FAMILIES, Family
from trifocal.model_spec import ROPE_TYPES

DESCRIPTION = "List the models that can be served: architectures, formats, language models, and what was verified."
_LABEL = 17  # columns
_QUANTIZED = (
    "AWQ (version gemm, written by `trifocal quantize`); int8 and int4 by rounding while loading (--quantization)"
)
_ROPE_DIFFERENCES = {
    "dynamic": "beyond the original context, each token has the base of a context that ends with it; transformers "
    "gives all tokens the base of the longest sequence in the batch. The difference is meant: an answer depends "
    "neither on its neighbours nor on how a prompt is cut into steps"
}


def configure_parser(parser: Parser) -> None:
    """The one flag."""
    parser.add_argument("--json", action="store_true", help="print the list as JSON")


def run(namespace: argparse.Namespace) -> int:
    """Print the list; no checkpoint is read and no device asked for."""
    try:
        print(json.dumps(catalogue(), indent=2) if namespace.json else table(), flush=True)
    except BrokenPipeError:  # `| head` has seen enough; what is left to flush goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def catalogue() -> dict[str, Any]:
    """Everything as data for JSON. Module paths are left out: they are no promise."""
    families = []
    for family in FAMILIES:
        entry = asdict(family)
        del entry["model"], entry["processor"]
        entry["modalities"] = ["text", *family.modalities]
        families.append(entry)
    weights = {"files": "safetensors", "dtypes": _dtypes(), "quantization": list(QUANTIZATIONS)}
    rope = {"types": list(ROPE_TYPES), "differences": _ROPE_DIFFERENCES}
    return {"version": __version__, "families": families, "weights": weights, "rope_scaling": rope}


def table() -> str:
    """The list for people, as wide as the terminal within reason."""
    width = min(max(get_terminal_size().columns, 72), 120)
    lines: list[str] = []
    for family in FAMILIES:
        lines += _wrapped(f"{family.name} ({', '.join(family.releases)})", width, others="    ")
        label = ""
        for title, text in _rows(family):
            start = f"  {'' if title == label else title:{_LABEL}}"
            lines += _wrapped(text, width, start, " " * (_LABEL + 4))
            label = title
        lines.append("")
    lines += _wrapped(f"weights: safetensors in {', '.join(_dtypes())}; {_QUANTIZED}", width)
    lines += _wrapped(f"rope_scaling: {', '.join(ROPE_TYPES)}, as in transformers, except:", width)
    for name, difference in _ROPE_DIFFERENCES.items():
        lines += _wrapped(f"  {name}: {difference}", width, others="    ")
    lines += _wrapped("architecture: the name in config.json, and below it the tensor names that are read", width)
    return "\n".join(lines)


def _rows(family: Family) -> Iterator[tuple[str, str]]:
    for each in family.formats:
        yield "architecture", each.architecture
        for names in each.tensors:
            yield "architecture", f"  {names}"
    yield "language models", ", ".join(family.language_models)
    yield "input", ", ".join(["text", *family.modalities])
    for check in family.checks:
        on = f" ({check.weights})" if check.weights else ""
        yield "verified", f"{check.what}: as {check.reference}{on}, by {check.test.partition('::')[0]}"
    if not family.is_run_as_released:
        yield "not verified", "no checkpoint was run as it was released"


def _wrapped(text: str, width: int, first: str = "", others: str = "") -> list[str]:
    return wrap(
        text, width, initial_indent=first, subsequent_indent=others, break_long_words=False, break_on_hyphens=False
    )


def _dtypes() -> list[str]:
    return sorted(set(DTYPES.values()))
