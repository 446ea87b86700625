"""Lists of a million items: refused by the first wrong one, and before anybody looks at all of them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from tests.api.helpers import HELLO
from trifocal.api.openai.schemas import Body, ChatBody, DetokenizeBody


@pytest.mark.parametrize(
    ("model", "field", "value"),
    [
        (ChatBody, "messages", [[]] * 1000),
        (ChatBody, "stop_token_ids", ["a"] * 1000),
        (ChatBody, "logit_bias", {str(number): "a" for number in range(1000)}),
        (ChatBody, "logit_bias", {str(number): 1 for number in range((1 << 18) + 1)}),
        (ChatBody, "stop", [1] * 1000),
        (DetokenizeBody, "tokens", [[]] * 1000),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_one_complaint_is_enough(model: type[Body], field: str, value: Any) -> None:
    """A complaint about each would take a gigabyte for a body of three megabytes."""
    with pytest.raises(ValidationError) as caught:
        model.model_validate_json(json.dumps({"messages": HELLO, field: value}))
    [error] = caught.value.errors()
    assert error["loc"][0] == field
