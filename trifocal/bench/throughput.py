"""`trifocal bench throughput`: the engine without a server, all requests given at once."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from trifocal import __version__
from trifocal.bench.workload import Shape, make_questions, parse_size
from trifocal.cli.flags import Parser, add_flags, build
from trifocal.config.engine import EngineArgs
from trifocal.errors import ConfigError
from trifocal.sampling_params import SamplingParams
from trifocal.types import RequestOutput

DESCRIPTION = "Measure the engine offline: LLM.chat over many prompts at once."
_DEFAULT = Shape(num_prompts=32, concurrency=32, input_words=64, output_tokens=64)


def configure_parser(parser: Parser) -> None:
    """Flags of the workload, and the engine's."""
    parser.usage = f"{parser.prog} [PATH] [workload flags] [engine flags]"
    parser.add_argument("model_path", nargs="?", metavar="PATH", help="folder to load (default: the built-in model)")
    parser.add_argument("--num-prompts", type=int, default=_DEFAULT.num_prompts, help="requests (default: 32)")
    parser.add_argument("--input-len", type=int, default=_DEFAULT.input_words, help="words in a prompt (default: 64)")
    parser.add_argument(
        "--output-len", type=int, default=_DEFAULT.output_tokens, help="tokens in an answer (default: 64)"
    )
    parser.add_argument("--num-images", type=int, default=0, help="pictures in a prompt (default: 0)")
    parser.add_argument("--image-size", default="448x448", help="WIDTHxHEIGHT of a picture (default: 448x448)")
    parser.add_argument("--json", help="file to write the results to")
    add_flags(parser, EngineArgs)


def run(namespace: argparse.Namespace) -> int:
    """Load, warm up with one request, then time all of them."""
    from trifocal.demo.run import MODEL
    from trifocal.llm import LLM

    shape = chosen_shape(namespace)
    path = namespace.model_path or getattr(namespace, "model", None) or str(MODEL)
    args = build(EngineArgs, argparse.Namespace(**{**vars(namespace), "model": path}))
    length = shape.output_tokens
    params = SamplingParams(temperature=0.0, max_tokens=length, min_tokens=length, ignore_eos=True)
    with LLM(**asdict(args)) as llm:
        llm.chat([question.messages for question in make_questions(shape, "warmup", 1)], params, use_tqdm=False)
        conversations = [question.messages for question in make_questions(shape, str(args.seed))]
        started = time.perf_counter()
        outputs = llm.chat(conversations, params)
        wall = time.perf_counter() - started
    summary = summarise(outputs, wall)
    print(
        f"{len(outputs)} requests in {wall:.2f} s: {summary['requests_per_s']:.2f} requests/s, "
        f"{summary['output_tokens_per_s']:.1f} output tokens/s, {summary['total_tokens_per_s']:.1f} tokens/s in all"
    )
    if namespace.json:
        report = {"trifocal": __version__, "model": path, "shape": asdict(shape), **summary}
        Path(namespace.json).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def chosen_shape(namespace: argparse.Namespace) -> Shape:
    """The workload that the flags ask for. Raises `ConfigError`."""
    shape = replace(
        _DEFAULT,
        num_prompts=namespace.num_prompts,
        input_words=namespace.input_len,
        output_tokens=namespace.output_len,
        num_images=namespace.num_images,
        image_size=parse_size(namespace.image_size),
    )
    if min(shape.num_prompts, shape.input_words, shape.output_tokens) < 1 or shape.num_images < 0:
        raise ConfigError("--num-prompts, --input-len and --output-len must be at least 1, --num-images at least 0")
    return shape


def summarise(outputs: Sequence[RequestOutput], wall: float) -> dict[str, float]:
    """Tokens and rates of a run that took `wall` seconds."""
    num_prompt = sum(len(output.prompt_token_ids) for output in outputs)
    num_output = sum(len(choice.token_ids) for output in outputs for choice in output.outputs)
    return {
        "wall_s": wall,
        "num_prompt_tokens": num_prompt,
        "num_output_tokens": num_output,
        "requests_per_s": len(outputs) / wall,
        "output_tokens_per_s": num_output / wall,
        "total_tokens_per_s": (num_prompt + num_output) / wall,
    }
