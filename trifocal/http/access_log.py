"""The access log: one line a request, `key=value` or JSON, without anything of its content."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from typing import Any

import msgspec

from trifocal.config.server import ServerArgs
from trifocal.http.context import Visit
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

    def __call__(self, visit: Visit) -> None:
        """Write a visit's line."""
        if self._is_on and (visit.status >= 400 or visit.route not in self._quiet):
            self._logger.info("%s", self._write(fields(visit)))


def fields(visit: Visit) -> dict[str, Any]:
    """What the line tells, in order; what does not apply is left out. Sizes are bytes, times are seconds."""
    return {
        "time": datetime.fromtimestamp(visit.began, UTC).isoformat(timespec="milliseconds"),
        "id": visit.id,
        "client": visit.client,
        "method": visit.method,
        "path": visit.path,
        "status": visit.status,
        "seconds": round(visit.ended - visit.arrived, 4),
        "bytes_in": visit.num_bytes_in,
        "bytes_out": visit.num_bytes_out,
        **_optional(visit),
        **{f"{step}_s": round(seconds, 4) for step, seconds in visit.steps.items()},
    }


def _optional(visit: Visit) -> dict[str, Any]:
    first = None if visit.first_token is None else round(visit.first_token - visit.arrived, 4)
    numbers = {
        "media_bytes": visit.num_media_bytes or None,
        "prompt_tokens": visit.num_prompt_tokens or None,
        "output_tokens": visit.num_output_tokens or None,
        "first_token_s": first,
        "ignored_fields": text_of(visit.ignored) or None,
        "error": visit.error,
    }
    return {name: value for name, value in numbers.items() if value is not None}


def _as_json(values: dict[str, Any]) -> str:
    return msgspec.json.encode(values).decode()


def _as_text(values: dict[str, Any]) -> str:
    return " ".join(f"{name}={_word(str(value))}" for name, value in values.items())


def _word(text: str) -> str:
    return msgspec.json.encode(text).decode() if not text or _QUOTED & set(text) or not text.isprintable() else text
