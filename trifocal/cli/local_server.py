"""A server of our own as a child process, for as long as a `with` block runs: what `demo`, `chat` and `bench` use."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from typing import Any

from trifocal.cli.client import Client
from trifocal.errors import ConfigError
from trifocal.subprocesses import end_with_parent, python_module, python_path

HOST = "127.0.0.1"
DEFAULT_PORT = 8000
_START_SECONDS = 600.0
_STOP_SECONDS = 20.0


def choose_port(wanted: int | None = None) -> int:
    """`wanted` or a `ConfigError` if it is taken; 0: any free port; None: 8000, or any free port if that is taken."""
    for port in (wanted,) if wanted is not None else (DEFAULT_PORT, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free to us
            try:
                probe.bind((HOST, port))
            except OSError as error:
                if wanted is not None:
                    raise ConfigError(f"--port {wanted} cannot be used: {error.strerror}") from None
                continue
            return int(probe.getsockname()[1])
    raise ConfigError("no free port on this machine")


class LocalServer:
    """`trifocal serve` on the loopback interface. Entering waits until it is ready, leaving stops all its processes.

    `words` are the words after `trifocal serve`; for `port` see `choose_port`. The server writes warnings and errors to
    our stderr. Raises `ConfigError` if it ends before it is ready (it has said why by then).
    """

    def __init__(self, words: Sequence[str], port: int | None = 0) -> None:
        self.port = choose_port(port)
        self.url = f"http://{HOST}:{self.port}"
        self._words = [*words, "--host", HOST, "--port", str(self.port), "--uvicorn-log-level", "warning"]
        self._process: subprocess.Popen[bytes] | None = None
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> LocalServer:
        for number in (signal.SIGTERM, signal.SIGHUP):  # they would end us without unwinding the `with` block
            self._handlers[number] = signal.signal(number, _exit)
        try:
            self._process = subprocess.Popen(
                python_module("trifocal", "serve", *self._words),
                env={"TRIFOCAL_LOGGING_LEVEL": "warning", **os.environ, **python_path()},
                start_new_session=True,  # Ctrl-C reaches us alone, and we stop the server in order
                preexec_fn=end_with_parent(signal.SIGTERM),  # even if we are killed and cannot stop it
            )
            self._wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._process is not None:
                _stop(self._process)
        finally:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)

    @property
    def pid(self) -> int:
        """Process id of the server, inside the `with` block."""
        assert self._process is not None
        return self._process.pid

    def wait(self) -> int:
        """Block until the server ends by itself; returns its exit status."""
        assert self._process is not None
        return self._process.wait()

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + _START_SECONDS
        with Client(self.url) as client:
            while time.monotonic() < deadline:
                if self._process.poll() is not None:
                    raise ConfigError(f"the server did not start (exit status {self._process.returncode})")
                if client.is_ready():
                    return
                time.sleep(0.1)
        raise ConfigError(f"the server was not ready within {_START_SECONDS:.0f} seconds")


def _exit(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask, wait, then make sure: whatever is left of the server's session is killed."""
    if process.poll() is None:
        process.terminate()
    try:
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
    finally:  # after a second Ctrl-C, too
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
