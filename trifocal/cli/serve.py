"""`trifocal serve`: flags in, a running server out."""

from __future__ import annotations

import argparse
import asyncio
import sys
from dataclasses import replace

from trifocal import log
from trifocal.cli.flags import Parser, add_flags, build
from trifocal.cli.ignored import add_ignored_flags, notes
from trifocal.config import envs
from trifocal.config.engine import EngineArgs, resolve
from trifocal.config.server import ServerArgs
from trifocal.errors import ConfigError

DESCRIPTION = "Serve a model folder over the OpenAI API: images, video and text in, text out."


def configure_parser(parser: Parser) -> None:
    """All flags of the server and the engine, and the environment variables below them."""
    parser.usage = f"{parser.prog} PATH [flags]"
    add_model(parser)
    add_flags(parser, ServerArgs)
    add_flags(parser, EngineArgs, skip=["model"])
    add_ignored_flags(parser)
    parser.add_config_flag()
    parser.epilog = environment_help()


def add_model(parser: argparse.ArgumentParser) -> None:
    """The model's folder, as the first word or as `--model`."""
    parser.add_argument("model_path", nargs="?", metavar="PATH", help="folder of a Hugging Face checkpoint")
    parser.add_argument("--model", default=argparse.SUPPRESS, metavar="PATH", help="the same folder, as a flag")


def environment_help() -> str:
    """The variables of `trifocal.config.envs`, for the end of the help text."""
    lines = ["environment variables (TRIFOCAL_NAME, or VLLM_NAME as vLLM calls it; the first wins):"]
    for env in envs.ALL:
        lines.append(f"  {env.name:27} {env.meaning} (default: {_shown(env.default)})")
    lines.append("  PYTORCH_CUDA_ALLOC_CONF, PYTORCH_NPU_ALLOC_CONF are passed to the device's allocator unchanged")
    return "\n".join(lines)


def _shown(value: object) -> str:
    if value is None:
        return "unset"
    return str(int(value)) if isinstance(value, bool) else str(value)


def engine_args(namespace: argparse.Namespace) -> EngineArgs:
    """`EngineArgs` of the parsed flags. Raises `ConfigError` where the model is missing or named twice."""
    given = {path for path in (namespace.model_path, getattr(namespace, "model", None)) if path is not None}
    if not given:
        raise ConfigError("no model is given; give the folder of a checkpoint: trifocal serve PATH (or --model PATH)")
    if len(given) > 1:
        raise ConfigError(f"two models given: {namespace.model_path!r} and --model {namespace.model!r}")
    return build(EngineArgs, argparse.Namespace(**{**vars(namespace), "model": given.pop()}))


def print_notes(namespace: argparse.Namespace) -> None:
    """Say on stderr which of the given flags have no effect."""
    for note in notes(namespace):
        print(f"note: {note}", file=sys.stderr)


def run(namespace: argparse.Namespace) -> int:
    """Check everything that can be checked without the weights, then serve until told to stop."""
    args = engine_args(namespace)
    server_args = build(ServerArgs, namespace)
    if server_args.served_model_name is None:  # requests name the model as the command line did
        server_args = replace(server_args, served_model_name=[args.model])
    key = envs.API_KEY.get()
    if server_args.api_key is None and key:  # empty counts as unset: container files carry variables without a value
        server_args = replace(server_args, api_key=[key])
    log.configure()
    print_notes(namespace)
    config = resolve(args)
    from trifocal.api.app import serve

    asyncio.run(serve(config, server_args))
    return 0
