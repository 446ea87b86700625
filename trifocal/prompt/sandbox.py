"""`Sandbox`: renders chat templates in helper processes, with a limit on time and on memory.

A template is a program by the author of the checkpoint, and it runs on what users send. See `sandbox_process` for why a
thread cannot hold it. Not covered: who breaks out of Jinja's sandbox has the rights of the server's user.
"""

from __future__ import annotations

import json
from typing import Any

from trifocal.errors import ConfigError, RequestError
from trifocal.helpers.pool import Helper, HelperDiedError, HelperPool, HelperSlowError, HelperStartError

MAX_SECONDS = 3.0  # of computing, for one rendering; usual ones take milliseconds
_PATIENCE = 20  # how much longer than its computing a rendering may take by the clock, on a busy machine
_MEMORY_BYTES = 1 << 30
_MAX_TOLD = 300  # characters of what a template says when it refuses: it may quote what it was given


class RenderedTooLongError(Exception):
    """A rendering was stopped because it passed its limit of characters."""


class RenderTimeoutError(RequestError, HelperSlowError):
    """A rendering was stopped because it passed its limit of time."""


class Renderer(Helper):
    """One rendering process."""

    max_message = 1 << 30  # of its own memory it could not make more

    def __init__(self) -> None:
        super().__init__("trifocal.prompt.sandbox_process", str(_MEMORY_BYTES))


class Sandbox:
    """As many rendering processes as renderings run at once. Safe to use from several threads.

    `max_seconds` of computing are given to each rendering, the template's compilation included.
    """

    def __init__(self, max_seconds: float = MAX_SECONDS) -> None:
        self._max_seconds = max_seconds
        self._pool = HelperPool(Renderer, name="template")

    def render(self, source: str, context: dict[str, Any], max_chars: int, *, max_seconds: float | None = None) -> str:
        """The text of template `source` with the variables `context`, in less than `max_seconds` where these are given.

        Raises `ConfigError` for a template that does not compile, `RenderedTooLongError` past `max_chars` characters,
        `RequestError` where the template refuses its variables or takes too much memory, `RenderTimeoutError` where it
        takes too long.
        """
        seconds = self._max_seconds if max_seconds is None else min(max_seconds, self._max_seconds)
        wall = seconds * _PATIENCE
        asked = {"source": source, "context": context, "max_chars": max_chars, "cpu_s": seconds, "wall_s": wall}
        try:
            text = json.dumps(asked, ensure_ascii=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise RequestError(f"the chat template's variables must be JSON: {error}", param="messages") from None
        answer = json.loads(self._ask(text.encode("utf-8", "surrogatepass"), seconds, wall))
        if "text" in answer:
            return str(answer["text"])
        kind, message = answer["error"], answer["message"]
        if kind == "syntax":
            raise ConfigError(f"the chat template does not compile: {message}")
        if kind == "too_long":
            raise RenderedTooLongError
        if kind == "memory":
            message = "rendering them takes too much memory"
        if len(message) > _MAX_TOLD:
            message = f"{message[:_MAX_TOLD]}…"
        raise RequestError(f"the chat template refused the messages: {message}", param="messages")

    def close(self) -> None:
        self._pool.close()

    def _ask(self, asked: bytes, seconds: float, wall: float) -> bytes:
        def work(renderer: Renderer) -> bytes:
            renderer.start_job(wall)
            renderer.send(asked)
            answer = renderer.receive()
            renderer.end_job()
            return answer

        try:
            return self._pool.run(work)
        except HelperSlowError:
            raise RenderTimeoutError(
                f"the chat template was stopped: rendering the messages took more than {seconds:g} s",
                param="messages",
            ) from None
        except HelperDiedError as error:
            message = f"the process that renders the chat template ended ({error})"
            raise RequestError(message, param="messages") from None
        except HelperStartError:
            message = "chat templates cannot be rendered at the moment, as no process for them can be started"
            raise RequestError(message, status=503, code="template_unavailable") from None


SANDBOX = Sandbox()
