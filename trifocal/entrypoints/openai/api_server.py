"""`python -m trifocal.entrypoints.openai.api_server --model PATH`: the module path that users of vLLM type."""

import sys

from trifocal.cli import run_command
from trifocal.malloc import system_allocator

if __name__ == "__main__":
    system_allocator()
    sys.exit(run_command("trifocal serve", "trifocal.cli.serve", sys.argv[1:]))
