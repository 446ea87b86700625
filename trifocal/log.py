"""Logging: one logger tree under `trifocal`, one line a record, to standard error.

Above DEBUG a line tells nothing that is nobody's business: no file paths, no memory addresses, and of an exception its
type and the places it passed, not its text (which may quote a request). At DEBUG everything is shown, tracebacks too.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from types import TracebackType

from trifocal.config import envs

_DATE = "%m-%d %H:%M:%S"
_FORMAT = "%(levelname)s %(asctime)s [%(name)s] %(message)s"
_MAX_PLACES = 8  # of an exception's way, the innermost ones
_PATH = re.compile(r"(?:file://|(?<![\w.:/<-]))(?:/[^\s/'\",;:()<>]+)+(/[^\s/'\",;:()<>]+)")
_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{6,}")
_BREAKS = str.maketrans({"\n": "\\n", "\r": "\\r"})

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the request that is worked on; lines written meanwhile carry it."""


def get_logger(name: str) -> logging.Logger:
    """The logger of a module; call with `__name__`."""
    return logging.getLogger(name)


def configure(level: str | None = None) -> None:
    """Attach the handler once per process. `level` defaults to `TRIFOCAL_LOGGING_LEVEL`.

    Other packages' warnings and errors come out through it, too, in the same form.
    """
    level = (level or envs.LOGGING_LEVEL.get()).upper()
    ours, others = logging.getLogger("trifocal"), logging.getLogger()
    ours.setLevel(level)
    if not ours.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter(_FORMAT, _DATE) if level == "DEBUG" else DiscreetFormatter())
        ours.addHandler(handler)
        ours.propagate = False
        others.addHandler(handler)
        logging.captureWarnings(True)


class DiscreetFormatter(logging.Formatter):
    """One line a record, in which paths, addresses and the text of exceptions do not appear."""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            message += f": {outline(error)}"
        mark = f" [{request_id.get()}]" if request_id.get() else ""
        return f"{record.levelname} {self.formatTime(record, _DATE)} [{record.name}]{mark} {discreet(message)}"


def discreet(text: str) -> str:
    """`text` on one line, paths cut down to their last part and addresses taken out."""
    return _ADDRESS.sub("0x…", _PATH.sub(r"…\1", text)).translate(_BREAKS)


def outline(error: BaseException) -> str:
    """Type and way of an exception without its text: `ValueError in trifocal.api.openai.chat:42 < trifocal.app:7`."""
    places = [f"{module}:{line}" for module, line in _places(error.__traceback__)][::-1]
    cut = " < …" if len(places) > _MAX_PLACES else ""
    way = " < ".join(places[:_MAX_PLACES]) + cut
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    because = f", because of {outline(cause)}" if cause is not None else ""
    return f"{type(error).__name__} in {way or 'no frame'}{because}"


def _places(traceback: TracebackType | None) -> Iterator[tuple[str, int]]:
    while traceback is not None:
        yield traceback.tb_frame.f_globals.get("__name__", "?"), traceback.tb_lineno
        traceback = traceback.tb_next
