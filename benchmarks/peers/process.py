"""A contender's processes: started, watched and stopped as one; and how busy the machine was with others meanwhile."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO

from trifocal.subprocesses import end_with_parent

_STOP_SECONDS = 20.0
_SAMPLE_SECONDS = 0.2
_TICKS = os.sysconf("SC_CLK_TCK")


class ContenderError(Exception):
    """A contender did not start, or did not answer; the message is for the report."""


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ProcessTree:
    """A command in a session of its own, for as long as a `with` block runs; its output goes to the file `log`."""

    def __init__(self, command: Sequence[str], log: Path, env: Mapping[str, str] | None = None, talks: bool = False):
        self._command, self._log_path, self._env, self._talks = list(command), log, dict(env or {}), talks
        self._is_stopped = threading.Event()
        self.peak_bytes = 0  # most resident memory of all its processes together, pages they share counted each time

    def __enter__(self) -> ProcessTree:
        pipe = subprocess.PIPE if self._talks else None
        with self._log_path.open("wb") as log:
            try:
                self.process = subprocess.Popen(
                    self._command,
                    stdin=pipe or subprocess.DEVNULL,
                    stdout=pipe or log,
                    stderr=log,
                    env={**os.environ, **self._env},
                    start_new_session=True,  # Ctrl-C reaches us alone, and we stop it in order
                    preexec_fn=end_with_parent(signal.SIGKILL),
                )
            except OSError as error:
                raise ContenderError(f"{self._command[0]} cannot be started: {error.strerror}") from None
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._is_stopped.set()
        self._watcher.join()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        if self.process.poll() is None:
            self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(_STOP_SECONDS)
        until = time.monotonic() + _STOP_SECONDS
        with suppress(ProcessLookupError):  # until none of its session is left: the next contender wants the machine
            while time.monotonic() < until:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.poll()
                time.sleep(0.02)
        self.process.wait()

    def check(self) -> None:
        """Raise `ContenderError` with its last words if it has ended."""
        if self.process.poll() is not None:
            raise ContenderError(f"it ended with exit status {self.process.returncode}: {self.last_words()}")

    def last_words(self) -> str:
        """The end of its log."""
        lines = self._log_path.read_text(errors="replace").strip().splitlines()
        return " | ".join(lines[-3:])[-400:] or "no word"

    def pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        """Its standard input and output, if it was made to talk."""
        assert self.process.stdin is not None and self.process.stdout is not None
        return self.process.stdin, self.process.stdout

    def cpu_seconds(self) -> float:
        """Processor time of all its living processes."""
        return sum(map(_cpu_seconds, processes(self.process.pid)))

    def _watch(self) -> None:
        while not self._is_stopped.wait(_SAMPLE_SECONDS):
            self.peak_bytes = max(self.peak_bytes, sum(map(_resident_bytes, processes(self.process.pid))))


def processes(root: int) -> list[int]:
    """A process and all below it."""
    found = [root]
    for pid in found:
        with suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
    return found


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, IndexError):
        return 0


def _cpu_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / _TICKS  # its own, and that of children that have ended


class Others:
    """How much of the machine's processors others took while a `with` block ran, as a share of all of them."""

    def __init__(self, tree: ProcessTree) -> None:
        self._tree = tree
        self.share = 0.0

    def _read(self) -> tuple[float, float]:
        words = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
        user, nice, system, _, _, irq, softirq, steal, *_ = map(int, words)
        busy = (user + nice + system + irq + softirq + steal) / _TICKS
        own = resource.getrusage(resource.RUSAGE_SELF)
        return time.perf_counter(), busy - self._tree.cpu_seconds() - own.ru_utime - own.ru_stime

    def __enter__(self) -> Others:
        self._before = self._read()
        return self

    def __exit__(self, *_: object) -> None:
        now, busy = self._read()
        wall = (now - self._before[0]) * (os.cpu_count() or 1)
        self.share = min(max((busy - self._before[1]) / wall, 0.0), 1.0)
