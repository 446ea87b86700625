"""`trifocal quantize`: a checkpoint in, its AWQ form out."""

from __future__ import annotations

import argparse
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from trifocal.cli.flags import Parser, add_flags, build
from trifocal.config.engine import EngineArgs
from trifocal.errors import ConfigError

DESCRIPTION = (
    "Write a copy of a checkpoint with its language model in int4 (AWQ), for this and other engines. The vision tower "
    "stays as it is."
)
METHODS = ("awq",)
GROUP_SIZES = ("128", "64", "32")
_LEAST_TOKENS = 64


def configure_parser(parser: Parser) -> None:
    """Two folders and a few flags."""
    parser.add_argument("path", metavar="PATH", help="folder of a Hugging Face checkpoint that is not quantized")
    parser.add_argument("out", metavar="OUT", help="the new folder")
    parser.add_argument("--method", choices=METHODS, default="awq", help="awq: int4 in groups, scales by calibration")
    parser.add_argument(
        "--calibration", metavar="FILE", help="your own samples, .jsonl or text (default: a small set that is built in)"
    )
    parser.add_argument(
        "--calibration-tokens",
        type=int,
        default=4096,
        metavar="N",
        help="how many tokens of the samples to use (default: 4096)",
    )
    parser.add_argument(
        "--group-size",
        choices=GROUP_SIZES,
        help="inputs that share a scale (default: the largest size that divides the inputs of all layers)",
    )
    parser.add_argument(
        "--chat-template", metavar="FILE", help="Jinja chat template for samples that are chats (default: PATH's own)"
    )
    add_flags(parser, EngineArgs, skip=[item.name for item in fields(EngineArgs) if not _is_of_samples(item)])


def _is_of_samples(item: Field[Any]) -> bool:
    """Whether it says how samples are read; errors about them name these as their remedies."""
    return item.metadata["group"] == "media" or item.name in ("trust_remote_code", "encoder_cache_gib")


def run(namespace: argparse.Namespace) -> int:
    """Quantize, and say what came of it."""
    from trifocal.quantize.awq import quantize
    from trifocal.quantize.samples import built_in, read_samples

    if namespace.calibration_tokens < _LEAST_TOKENS:
        raise ConfigError(f"--calibration-tokens must be at least {_LEAST_TOKENS}, got {namespace.calibration_tokens}")
    samples = read_samples(Path(namespace.calibration)) if namespace.calibration else built_in()
    path = Path(namespace.path).expanduser()
    report = quantize(
        path,
        Path(namespace.out).expanduser(),
        samples,
        group=int(namespace.group_size) if namespace.group_size else None,
        num_tokens=namespace.calibration_tokens,
        chat_template=namespace.chat_template,
        args=build(EngineArgs, argparse.Namespace(**{**vars(namespace), "model": str(path)})),
    )
    less = 1 - report.error / report.plain_error if report.plain_error else 0.0
    before, after = report.bytes_before / 1e6, report.bytes_after / 1e6
    print(f"Wrote {namespace.out}: {before:.1f} MB became {after:.1f} MB, in groups of {report.group}.")
    print(
        f"On {report.num_tokens} tokens of samples, scales lowered the error of plain rounding by {100 * less:.0f} %."
    )
    template = f" --chat-template {namespace.chat_template}" if namespace.chat_template else ""
    print(f"Try: trifocal serve {namespace.out}{template}")
    return 0
