"""`Sandbox`: renders chat templates in processes of their own, with a limit on time and on memory.

A template is a program of whoever made the checkpoint, and it runs on what users send. See `sandbox_process` for why a
thread cannot hold it. An idle process waits for the next rendering; one that went over its time is gone, and the next
rendering starts another. Not covered: who breaks out of Jinja's sandbox has the rights of the server's user.
"""

from __future__ import annotations

import atexit
import json
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from trifocal.errors import ConfigError, RequestError

MAX_SECONDS = 3.0  # of computing, for one rendering; usual ones take milliseconds
QUICK_SECONDS = 0.5  # what a rendering gets that others wait for
_MAX_TOLD = 300  # characters of what a template says when it refuses: it may quote what it was given
_PROGRAM = Path(__file__).with_name("sandbox_process.py")


class RenderedTooLongError(Exception):
    """A rendering was stopped because it passed its limit of characters."""


class RenderTimeoutError(RequestError):
    """A rendering was stopped because it passed its limit of time."""


class Sandbox:
    """A pool of rendering processes, as many as renderings run at once. Safe to use from several threads.

    `max_seconds` of computing are given to each rendering, the template's compilation included.
    """

    def __init__(self, max_seconds: float = MAX_SECONDS) -> None:
        self._max_seconds = max_seconds
        self._idle: list[subprocess.Popen[bytes]] = []
        self._lock = threading.Lock()
        atexit.register(self.close)

    def render(self, source: str, context: dict[str, Any], max_chars: int, *, max_seconds: float | None = None) -> str:
        """The text of template `source` with the variables `context`, in less than `max_seconds` where these are given.

        Raises `ConfigError` for a template that does not compile, `RenderedTooLongError` past `max_chars` characters,
        `RequestError` where the template refuses its variables or takes too much memory, `RenderTimeoutError` where it
        takes too long.
        """
        seconds = self._max_seconds if max_seconds is None else min(max_seconds, self._max_seconds)
        asked = {"source": source, "context": context, "max_chars": max_chars, "max_seconds": seconds}
        try:
            line = json.dumps(asked, ensure_ascii=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise RequestError(f"the chat template takes JSON only: {error}", param="messages") from None
        answer = json.loads(self._ask(line.encode("utf-8", "surrogatepass"), seconds))
        if "text" in answer:
            return str(answer["text"])
        kind, message = answer["error"], answer["message"]
        if kind == "syntax":
            raise ConfigError(f"the chat template does not compile: {message}")
        if kind == "too_long":
            raise RenderedTooLongError
        if kind == "memory":
            message = "they make it take too much memory"
        if len(message) > _MAX_TOLD:
            message = f"{message[:_MAX_TOLD]}…"
        raise RequestError(f"the chat template refused the messages: {message}", param="messages")

    def close(self) -> None:
        """End the idle processes."""
        while self._idle:
            _end(self._idle.pop())

    def _ask(self, line: bytes, max_seconds: float) -> bytes:
        process = self._take()
        answer = b""
        try:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(line + b"\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            pass
        finally:
            if answer.endswith(b"\n"):
                with self._lock:
                    self._idle.append(process)
            else:
                status = _end(process)
        if answer.endswith(b"\n"):
            return answer
        if status in (-signal.SIGPROF, -signal.SIGALRM):
            raise RenderTimeoutError(
                f"the chat template was stopped: rendering the messages took more than {max_seconds:g} s",
                param="messages",
            )
        raise RequestError(f"the process that renders the chat template ended (status {status})", param="messages")

    def _take(self) -> subprocess.Popen[bytes]:
        with self._lock:
            while self._idle:
                process = self._idle.pop()
                if process.poll() is None:
                    return process
                _end(process)
        # -P: the folder of the program is no place to import from.
        command = [sys.executable, "-P", str(_PROGRAM), str(self._max_seconds)]
        # What Python says of an end that nobody foresaw would have file paths in it.
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def _end(process: subprocess.Popen[bytes]) -> int:
    """End a process that is not wanted any more, or has ended itself; returns its status."""
    assert process.stdin is not None and process.stdout is not None
    process.stdout.close()
    with suppress(BrokenPipeError):
        process.stdin.close()
    try:
        return process.wait(timeout=1)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


SANDBOX = Sandbox()
