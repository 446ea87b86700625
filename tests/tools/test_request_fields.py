"""The page of request fields is the code's."""

from __future__ import annotations

from tools import request_fields


def test_the_page_is_current() -> None:
    assert request_fields.PAGE.read_text(encoding="utf-8") == request_fields.page(), (
        "docs/request-fields.md is out of date: python -m tools.request_fields"
    )
