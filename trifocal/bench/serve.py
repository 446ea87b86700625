"""`trifocal bench serve`: load on any server of the OpenAI API (Trifocal, vLLM, llama.cpp ...)."""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import platform
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from trifocal import __version__
from trifocal.bench.load import Target, run_load
from trifocal.bench.report import render, summarise
from trifocal.bench.workload import PRESETS, Shape, make_questions, parse_size
from trifocal.cli.client import Client, ServerError
from trifocal.cli.flags import Parser
from trifocal.cli.local_server import LocalServer
from trifocal.errors import ConfigError

DESCRIPTION = "Measure a server under load: time to first token, time per token, throughput."
_DEFAULT = Shape(num_prompts=32, concurrency=8, input_words=64, output_tokens=64)


def configure_parser(parser: Parser) -> None:
    """Flags of the target and of the workload."""
    parser.usage = f"{parser.prog} [--base-url URL | --model-path PATH] [--preset NAMES | workload flags]"
    target = parser.add_argument_group("server")
    target.add_argument("--base-url", help="address of a running server (default: one is started for the benchmark)")
    target.add_argument("--model", help="model to ask for (default: the first in /v1/models)")
    target.add_argument("--model-path", help="folder to start a server on (default: the built-in model)")
    target.add_argument("--api-key", help="API key of the server")
    work = parser.add_argument_group("workload")
    work.add_argument("--preset", help=f"comma list of {', '.join(PRESETS)}, or all; other flags override their values")
    work.add_argument("--num-prompts", type=int, help=f"requests in all (default: {_DEFAULT.num_prompts})")
    work.add_argument("--concurrency", type=int, help=f"requests at once (default: {_DEFAULT.concurrency})")
    work.add_argument("--request-rate", type=float, default=math.inf, help="arrivals a second (default: all at once)")
    work.add_argument("--input-len", type=int, help=f"words in a prompt (default: {_DEFAULT.input_words})")
    work.add_argument("--output-len", type=int, help=f"tokens in an answer (default: {_DEFAULT.output_tokens})")
    work.add_argument("--num-images", type=int, help="pictures in a prompt (default: 0)")
    work.add_argument("--image-size", help="WIDTHxHEIGHT of a picture (default: 448x448)")
    work.add_argument("--seed", default="0", help="seed of the words and pictures (default: 0)")
    work.add_argument(
        "--no-stream", action="store_true", help="do not stream; only times of whole answers are measured"
    )
    work.add_argument("--warmup", type=int, default=1, help="untimed requests before each workload (default: 1)")
    parser.add_argument("--json", help="file to write all results to")


def run(namespace: argparse.Namespace) -> int:
    """Run the workloads one after the other; 1 if any request failed."""
    workloads = chosen_workloads(namespace)
    with ExitStack() as stack:
        url = namespace.base_url
        if url is None:
            from trifocal.demo.run import MODEL

            url = stack.enter_context(LocalServer([namespace.model_path or str(MODEL)])).url
        target = Target(url, _model(url, namespace), not namespace.no_stream, namespace.api_key)
        results = {name: _measure(target, name, shape, namespace) for name, shape in workloads.items()}
    if namespace.json:
        report = {"trifocal": __version__, "machine": platform.platform(), "url": url, "model": target.model}
        report |= {"stream": target.stream, "results": results}
        Path(namespace.json).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 1 if any(result["num_failed"] for result in results.values()) else 0


def chosen_workloads(namespace: argparse.Namespace) -> dict[str, Shape]:
    """The shapes to run by name. Raises `ConfigError` for an unknown preset or a number that makes no sense."""
    names = list(PRESETS) if namespace.preset == "all" else (namespace.preset or "").split(",")
    given = {
        "num_prompts": namespace.num_prompts,
        "concurrency": namespace.concurrency,
        "input_words": namespace.input_len,
        "output_tokens": namespace.output_len,
        "num_images": namespace.num_images,
        "image_size": parse_size(namespace.image_size) if namespace.image_size else None,
    }
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    for name in ("num_prompts", "concurrency", "input_words", "output_tokens"):
        if changes.get(name, 1) < 1:
            raise ConfigError(f"{name} must be at least 1, got {changes[name]}")
    if changes.get("num_images", 0) < 0 or namespace.request_rate <= 0:
        raise ConfigError("--num-images must be at least 0 and --request-rate above 0")
    if names == [""]:
        return {"custom": replace(_DEFAULT, **changes)}
    for name in names:
        if name not in PRESETS:
            raise ConfigError(f"--preset: unknown {name!r}; known: {', '.join(PRESETS)}, all")
    return {name: replace(PRESETS[name], **changes) for name in names}


def _model(url: str, namespace: argparse.Namespace) -> str:
    if namespace.model:
        return str(namespace.model)
    with Client(url, namespace.api_key) as client:
        try:
            return client.first_model()
        except ServerError as error:
            raise ConfigError(str(error)) from None


def _measure(target: Target, name: str, shape: Shape, namespace: argparse.Namespace) -> dict[str, Any]:
    warmup = make_questions(shape, f"warmup/{namespace.seed}/{name}", namespace.warmup)
    questions = make_questions(shape, f"{namespace.seed}/{name}")
    asyncio.run(run_load(target, warmup, shape.concurrency))
    with tqdm(total=len(questions), desc=name, leave=False) as bar:
        measured = asyncio.run(run_load(target, questions, shape.concurrency, namespace.request_rate, bar.update))
    summary = summarise(measured)
    print(render(name, summary), flush=True)
    return {"shape": asdict(shape), **summary}
