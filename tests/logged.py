"""What was logged while a test ran."""

from __future__ import annotations

import pytest


def messages(caplog: pytest.LogCaptureFixture, level: str = "WARNING") -> list[str]:
    """The lines of `level`, each once: where an earlier test has configured our logger, pytest gets a record twice."""
    return list({id(each): each.getMessage() for each in caplog.records if each.levelname == level}.values())
