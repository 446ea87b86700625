"""Servers of our own: they start, they say why they do not, and nothing is left of them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trifocal.cli.local_server import HOST, LocalServer, choose_port
from trifocal.demo.run import MODEL
from trifocal.errors import ConfigError

PARENT = f"""
import sys, time
from trifocal.cli.local_server import LocalServer, choose_port
with LocalServer([{str(MODEL)!r}], choose_port(0)) as server:
    print(server._process.pid, flush=True)
    time.sleep(600)
"""


def session_members(session: int) -> list[int]:
    """Processes of a session that still run (zombies excepted)."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(entry.parent.name))
    return found


def test_ports() -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--port {port} cannot be used"):
            choose_port(port)
    assert choose_port(port) == port
    assert choose_port() != choose_port(0) > 0


def test_a_server_that_cannot_start(capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ConfigError, match="did not start"), LocalServer(["no/such/model"], choose_port(0)):
        pass
    assert "no/such/model" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGKILL])
def test_nothing_is_left_when_its_owner_is_killed(number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONMALLOC", raising=False)
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        session = int(owner.stdout.readline())
        assert len(session_members(session)) >= 2  # server and engine
        environ = Path(f"/proc/{session}/environ").read_bytes().split(b"\0")
        assert b"PYTHONMALLOC=malloc" in environ, "a server gives the memory of small objects back"
        os.kill(owner.pid, number)
        deadline = time.monotonic() + 30
        while session_members(session) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert session_members(session) == []
