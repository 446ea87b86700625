"""Log lines: one a record, without paths, addresses or the text of exceptions."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from trifocal.log import DiscreetFormatter, discreet, outline, request_id


def line(message: str, *args: object, error: BaseException | None = None) -> str:
    record = logging.LogRecord("trifocal.test", logging.ERROR, __file__, 1, message, args, None)
    if error is not None:
        record.exc_info = (type(error), error, error.__traceback__)
    return DiscreetFormatter().format(record)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cannot read /home/me/models/a.bin: no", "cannot read …/a.bin: no"),
        ("file:///srv/pictures/cat.png is gone", "…/cat.png is gone"),
        ("'/tmp/x/y'", "'…/y'"),
        ("at 0x7f3a2b1c9d40>", "at 0x…>"),
        ("ready: http://127.0.0.1:8000/v1/models", "ready: http://127.0.0.1:8000/v1/models"),
        ("10 tokens/s and 3/4 of it", "10 tokens/s and 3/4 of it"),
        ("two\nlines\r", "two\\nlines\\r"),
        ("mask 0xff", "mask 0xff"),
    ],
)
def test_what_is_left_of_a_text(text: str, expected: str) -> None:
    assert discreet(text) == expected


def failing(secret: str) -> None:
    raise ValueError(f"cannot understand {secret}")


def test_an_exception_is_its_type_and_its_way() -> None:
    try:
        try:
            failing("my prompt")
        except ValueError as error:
            raise RuntimeError("while at /etc/passwd") from error
    except RuntimeError as error:
        shown = line("it failed", error=error)
    assert "\n" not in shown and "my prompt" not in shown and "passwd" not in shown and str(Path.cwd()) not in shown
    here = re.escape(__name__)
    assert re.search(
        rf"it failed: RuntimeError in {here}:\d+, because of ValueError in {here}:\d+ < {here}:\d+$", shown
    )


def test_a_deep_exception_is_cut() -> None:
    def dive(depth: int) -> None:
        if depth == 0:
            raise KeyError("bottom")
        dive(depth - 1)

    with pytest.raises(KeyError) as caught:
        dive(50)
    assert outline(caught.value).count("<") == 8 and outline(caught.value).endswith("…")


def test_lines_carry_the_id_of_their_request() -> None:
    assert "[" not in line("outside").partition("]")[2]
    token = request_id.set("abc-1")
    assert "[trifocal.test] [abc-1] inside" in line("inside")
    request_id.reset(token)
