"""Logging: one logger tree under `trifocal`, one line a record, to standard error."""

from __future__ import annotations

import logging
import sys

from trifocal import envs

_FORMAT = "%(levelname)s %(asctime)s [%(name)s] %(message)s"


def get_logger(name: str) -> logging.Logger:
    """The logger of a module; call with `__name__`."""
    return logging.getLogger(name)


def configure(level: str | None = None) -> None:
    """Attach the handler once per process. `level` defaults to `TRIFOCAL_LOGGING_LEVEL`."""
    root = logging.getLogger("trifocal")
    root.setLevel((level or envs.LOGGING_LEVEL.get()).upper())
    if not root.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter(_FORMAT, datefmt="%m-%d %H:%M:%S"))
        root.addHandler(handler)
        root.propagate = False
