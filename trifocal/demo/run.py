"""`trifocal demo`: a real server on the built-in model, asked the sample questions over HTTP."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trifocal.cli.client import Client, ServerError, media_part
from trifocal.cli.flags import Parser
from trifocal.cli.local_server import LocalServer
from trifocal.errors import ConfigError

DESCRIPTION = "Start the server on the built-in model, ask it the sample questions and leave it running."
MODEL = Path(__file__).parent / "model"
SAMPLES = Path(__file__).parent / "samples"
NAME = "trifocal-demo"
_MAX_TOKENS = 48
_PICTURES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Sample:
    """A question with its only right answer, and the files it is about (in `SAMPLES`)."""

    media: tuple[str, ...]
    question: str
    answer: str

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The chat request's messages, media as data URLs."""
        parts = [media_part(SAMPLES / name) for name in self.media]
        return [{"role": "user", "content": [*parts, {"type": "text", "text": self.question}]}]


def configure_parser(parser: Parser) -> None:
    """Two flags; everything else is the server's business."""
    parser.add_argument("--once", action="store_true", help="stop after the questions; exit 0 if all answers are right")
    parser.add_argument("--port", type=int, help="port of the server (default: 8000, or a free one if that is taken)")


def load_samples() -> list[Sample]:
    """The questions that come with the package. Raises `ConfigError` if they or the model are not there."""
    if not (MODEL / "config.json").is_file() or not (SAMPLES / "samples.json").is_file():
        raise ConfigError("this installation has no built-in model (trifocal/demo/model is missing)")
    rows = json.loads((SAMPLES / "samples.json").read_text(encoding="utf-8"))
    return [Sample(tuple(row["media"]), row["question"], row["answer"]) for row in rows]


def is_right(answer: str, expected: str) -> bool:
    """Equal but for case, outer spaces and a full stop at the end."""
    return answer.strip().rstrip(".").casefold() == expected.strip().rstrip(".").casefold()


def run(namespace: argparse.Namespace) -> int:
    """Ask everything; 0 if all answers were right (without `--once`: after Ctrl-C), 1 if not."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without the check mark must not end the demo
    samples = load_samples()
    print("Starting the server on the built-in model ...", flush=True)
    started = time.monotonic()
    with LocalServer([str(MODEL), "--served-model-name", NAME], namespace.port) as server:
        print(f"Ready after {time.monotonic() - started:.1f} s at {server.url}\n", flush=True)
        with Client(server.url) as client:
            num_right = sum([_ask(client, sample) for sample in samples])
        print(f"{num_right} of {len(samples)} answers right.", flush=True)
        if not namespace.once:
            print(_what_next(server.url, samples), flush=True)
            return _serve_on(server)
    return 0 if num_right == len(samples) else 1


def _ask(client: Client, sample: Sample) -> bool:
    """Ask one question, show the answer as it comes; returns whether it was right."""
    print(f"[{', '.join(sample.media) or 'text'}] {sample.question}\n  ", end="", flush=True)
    started = time.monotonic()
    answer = ""
    try:
        for piece in client.stream_chat(NAME, sample.messages, temperature=0, max_tokens=_MAX_TOKENS):
            answer += piece
            print(piece, end="", flush=True)
    except ServerError as error:
        print(f"error: {error}", end="")
    right = is_right(answer, sample.answer)
    verdict = "✓" if right else f"✗  expected: {sample.answer}"
    print(f"  {verdict}  ({time.monotonic() - started:.2f} s)\n", flush=True)
    return right


def _serve_on(server: LocalServer) -> int:
    try:
        return server.wait()
    except KeyboardInterrupt:
        print("\nStopping the server ...", flush=True)
        return 0


def _what_next(url: str, samples: list[Sample]) -> str:
    sample = next(sample for sample in samples if len(sample.media) == 1 and sample.media[0].endswith(_PICTURES))
    picture = os.path.relpath(SAMPLES / sample.media[0])
    python = os.path.relpath(sys.executable)
    return f"""
The server keeps running until Ctrl-C. From another terminal:

  curl {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{{"model": "{NAME}",
    "messages": [{{"role": "user", "content": [{{"type": "text", "text": "{sample.question}"}}, {{"type": "image_url",
    "image_url": {{"url": "data:image/png;base64,'$(base64 < {picture} | tr -d '\\n')'"}}}}]}}]}}'

  {python} -m trifocal chat --url {url}
    and there: /image {picture}

Any client of the OpenAI API works with base_url={url}/v1 and model={NAME}.
"""
