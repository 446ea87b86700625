"""`trifocal chat`: a conversation with pictures and clips in the terminal."""

from __future__ import annotations

import argparse
from contextlib import ExitStack, suppress
from typing import Any

from trifocal.cli.client import Client, ServerError, media_part
from trifocal.cli.flags import Parser, add_flags, to_words
from trifocal.cli.local_server import DEFAULT_PORT, HOST, LocalServer
from trifocal.cli.serve import add_model, engine_args
from trifocal.config.engine import EngineArgs
from trifocal.errors import ConfigError

DESCRIPTION = (
    "Talk to a running server (--url), or to a model folder: a server for it runs as long as the conversation."
)
DEFAULT_URL = f"http://{HOST}:{DEFAULT_PORT}"
COMMANDS = "/image PATH and /video PATH add media to your next message, /reset starts over, /quit (or Ctrl-D) ends"


def configure_parser(parser: Parser) -> None:
    """Flags of the conversation, and the engine's for a server of its own."""
    parser.usage = f"{parser.prog} [--url URL | PATH [engine flags]]"
    add_model(parser)
    parser.add_argument("--url", help=f"address of a running server (default: {DEFAULT_URL})")
    parser.add_argument("--model-name", help="model to ask for (default: the first in /v1/models)")
    parser.add_argument("--api-key", help="API key of the server")
    parser.add_argument("--system", help="system message")
    parser.add_argument(
        "--temperature", type=float, help="sampling temperature; 0: always the likeliest token (default: the server's)"
    )
    parser.add_argument("--max-tokens", type=int, help="longest answer in tokens (default: what fits the context)")
    add_flags(parser, EngineArgs, skip=["model"])


def run(namespace: argparse.Namespace) -> int:
    """Find or start the server, then converse until the user has enough."""
    with ExitStack() as stack:
        url = namespace.url or DEFAULT_URL
        if namespace.model_path or hasattr(namespace, "model"):
            args = engine_args(namespace)
            print(f"Starting a server on {args.model} ...", flush=True)
            url = stack.enter_context(LocalServer([args.model, *to_words(EngineArgs, namespace)])).url
        client = stack.enter_context(Client(url, namespace.api_key))
        try:
            model = namespace.model_name or client.first_model()
        except ServerError as error:
            raise ConfigError(str(error)) from None
        fields = {"temperature": namespace.temperature, "max_tokens": namespace.max_tokens}
        conversation = Conversation(client, model, namespace.system, {k: v for k, v in fields.items() if v is not None})
        print(f"{model} at {client.url}\n{COMMANDS}")
        _converse(conversation)
    return 0


class Conversation:
    """Messages so far, media waiting for the next one, and how to ask."""

    def __init__(self, client: Client, model: str, system: str | None, fields: dict[str, Any]) -> None:
        self._client = client
        self._model = model
        self._fields = fields
        self._opening = [{"role": "system", "content": system}] if system else []
        self.reset()

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.messages: list[dict[str, Any]] = list(self._opening)
        self.pending: list[dict[str, Any]] = []

    def attach(self, kind: str, path: str) -> str:
        """Keep a file for the next message; returns what to tell the user. Raises `ConfigError`."""
        part = media_part(path.strip("'\""))
        if part["type"] != f"{kind}_url":
            raise ConfigError(f"{path} is not {'an image' if kind == 'image' else 'a video'}")
        self.pending.append(part)
        return f"({len(self.pending)} attached; now ask)"

    def ask(self, text: str) -> None:
        """Send a message and print the answer as it comes; Ctrl-C cuts the answer short. Raises `ServerError`."""
        content = [*self.pending, {"type": "text", "text": text}] if self.pending else text
        question = {"role": "user", "content": content}
        answer = ""
        stream = self._client.stream_chat(self._model, [*self.messages, question], **self._fields)
        try:
            for piece in stream:
                answer += piece
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            print(" [stopped]", end="")
        finally:
            stream.close()  # ends the request, finished or not
            print()
        self.messages += [question, {"role": "assistant", "content": answer}]
        self.pending = []


def _converse(conversation: Conversation) -> None:
    with suppress(ImportError):  # arrow keys and history in input(); not on every system
        import readline  # noqa: F401
    while True:
        try:
            line = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if line in ("/quit", "/exit"):
            return
        try:
            _take(conversation, line)
        except (ServerError, ConfigError) as error:
            print(f"error: {error}")


def _take(conversation: Conversation, line: str) -> None:
    command, _, argument = line.partition(" ")
    if command in ("/image", "/video") and argument:
        print(conversation.attach(command[1:], argument.strip()))
    elif command == "/reset":
        conversation.reset()
    elif command.startswith("/"):
        print(COMMANDS)
    elif line:
        conversation.ask(line)
