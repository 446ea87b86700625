"""What all tests share: one torch thread a process, chance that is the same each time, a server on the built-in model.

Tests of properties (hypothesis) try the same examples each time. `-m slow` runs them too, over new ones.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator

from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads of a test that asks for more leave cores to the others

import pytest

from trifocal.cli.local_server import LocalServer, choose_port
from trifocal.demo.run import MODEL, NAME

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, and so would we

settings.register_profile("ci", derandomize=True, deadline=None, database=None)
settings.register_profile("random", deadline=None, print_blob=True)


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("random" if config.option.markexpr == "slow" else "ci")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.option.markexpr == "slow":
        for item in items:
            if getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
                item.add_marker("slow")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Tests that ask torch for chance get the same, whichever ran before."""
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(0)


@pytest.fixture(scope="session")
def demo_server() -> Iterator[str]:
    """The URL of a real server on the built-in model; its model is called `trifocal-demo`."""
    with LocalServer([str(MODEL), "--served-model-name", NAME], choose_port(0)) as server:
        yield server.url
