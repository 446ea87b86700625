"""One torch thread a process, set before torch is imported: tests and their servers share few cores."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from trifocal.cli.local_server import LocalServer, choose_port
from trifocal.demo.run import MODEL, NAME

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, and so would we


@pytest.fixture(scope="session")
def demo_server() -> Iterator[str]:
    """The URL of a real server on the built-in model; its model is called `trifocal-demo`."""
    with LocalServer([str(MODEL), "--served-model-name", NAME], choose_port(0)) as server:
        yield server.url
