"""The `trifocal` command. Each sub-command lives in a module of its own that is imported when it is called."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

from trifocal import __version__
from trifocal.cli.flags import Parser
from trifocal.config import envs
from trifocal.errors import ConfigError
from trifocal.malloc import system_allocator


@dataclass(frozen=True)
class Command:
    """A sub-command: its module has `DESCRIPTION`, `configure_parser(parser)` and `run(namespace) -> exit status`."""

    module: str
    summary: str


COMMANDS = {
    "serve": Command("trifocal.cli.serve", "serve a model folder over the OpenAI API"),
    "chat": Command("trifocal.cli.chat", "talk to a server, or to a model folder, in this terminal"),
    "quantize": Command("trifocal.cli.quantize", "write a copy of a checkpoint with int4 weights (AWQ)"),
    "models": Command("trifocal.cli.models", "list the models that can be served, and what was verified"),
    "demo": Command("trifocal.demo.run", "start the server on the built-in model and ask it the sample questions"),
    "bench serve": Command("trifocal.bench.serve", "measure a server under load"),
    "bench throughput": Command("trifocal.bench.throughput", "measure the engine offline, all requests at once"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 2 for what the user must fix, 130 after Ctrl-C."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] in (["-h"], ["--help"], []):
        print(overview())
        return 0 if words else 2
    if words[0] in ("--version", "-V"):
        print(f"trifocal {__version__}")
        return 0
    length = 2 if words[0] == "bench" else 1
    name = " ".join(words[:length])
    if name not in COMMANDS:
        if name in ("bench", "bench -h", "bench --help"):
            print(overview())
            return 0 if words[1:] else 2
        return _unknown_command(name)
    if argv is None and name == "serve":
        system_allocator()
    return run_command(f"trifocal {name}", COMMANDS[name].module, words[length:])


def run_command(prog: str, module: str, argv: Sequence[str]) -> int:
    """Run one sub-command; what the user must fix becomes one line on stderr, never a traceback."""
    command = import_module(module)
    parser = Parser(prog=prog, description=command.DESCRIPTION)
    command.configure_parser(parser)
    namespace = parser.parse_args(argv)
    try:
        envs.check()
        for note in envs.notes():
            print(f"note: {note}", file=sys.stderr)
        return int(command.run(namespace))
    except ConfigError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def overview() -> str:
    """What `trifocal --help` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"trifocal {__version__}: images, video and text in, text out", "", "usage: trifocal COMMAND [flags]", ""]
    lines += [f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join([*lines, "", "`trifocal COMMAND --help` lists the flags of a command."])


def _unknown_command(name: str) -> int:
    from difflib import get_close_matches

    near = get_close_matches(name, COMMANDS, n=1)
    hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(COMMANDS)}"
    print(f"trifocal: unknown command {name!r}{hint}", file=sys.stderr)
    return 2
