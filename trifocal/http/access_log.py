"""The access log: one line a request, `key=value` or JSON, without anything of its content."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from typing import Any

import msgspec

from trifocal.config.server import ServerArgs
from trifocal.http.context import RequestContext
from trifocal.prompt.ignored_fields import text_of

_QUOTED = frozenset(' "=\\')


class AccessLog:
    """Writes to the logger `trifocal.access`, whose lines are their own format."""

    def __init__(self, args: ServerArgs) -> None:
        self._write = _as_json if args.access_log == "json" else _as_text
        self._is_on = args.logs_access
        self._quiet = frozenset(path.strip() for path in args.disable_access_log_for_endpoints.split(","))
        self._logger = logging.getLogger("trifocal.access")
        if not self._logger.handlers:
            handler = logging.StreamHandler(sys.stderr)
            handler.setFormatter(logging.Formatter("%(message)s"))
            self._logger.addHandler(handler)
            self._logger.propagate = False

    def __call__(self, context: RequestContext) -> None:
        """Write the line of a request that has ended."""
        if self._is_on and (context.status >= 400 or context.route not in self._quiet):
            self._logger.info("%s", self._write(fields(context)))


def fields(context: RequestContext) -> dict[str, Any]:
    """What the line tells, in order; what does not apply is left out. Sizes are bytes, times are seconds."""
    return {
        "time": datetime.fromtimestamp(context.began, UTC).isoformat(timespec="milliseconds"),
        "id": context.id,
        "client": context.client,
        "method": context.method,
        "path": context.path,
        "status": context.status,
        "seconds": round(context.ended - context.arrived, 4),
        "bytes_in": context.num_bytes_in,
        "bytes_out": context.num_bytes_out,
        **_optional(context),
        **{f"{step}_s": round(seconds, 4) for step, seconds in context.steps.items()},
    }


def _optional(context: RequestContext) -> dict[str, Any]:
    first = None if context.first_token is None else round(context.first_token - context.arrived, 4)
    numbers = {
        "media_bytes": context.num_media_bytes or None,
        "prompt_tokens": context.num_prompt_tokens or None,
        "output_tokens": context.num_output_tokens or None,
        "first_token_s": first,
        "ignored_fields": text_of(context.ignored) or None,
        "error": context.error,
    }
    return {name: value for name, value in numbers.items() if value is not None}


def _as_json(values: dict[str, Any]) -> str:
    return msgspec.json.encode(values).decode()


def _as_text(values: dict[str, Any]) -> str:
    return " ".join(f"{name}={_word(str(value))}" for name, value in values.items())


def _word(text: str) -> str:
    return msgspec.json.encode(text).decode() if not text or _QUOTED & set(text) or not text.isprintable() else text
