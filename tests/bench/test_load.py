"""What a load sends."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from trifocal.bench.load import Target, _ask
from trifocal.bench.workload import SAMPLED, Question


@pytest.mark.parametrize("sampling", [{}, SAMPLED])
def test_a_question_says_how_it_is_sampled(sampling: dict[str, Any]) -> None:
    bodies: list[dict[str, Any]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        bodies.append(json.loads(request.content))
        return httpx.Response(200, json={"usage": {"prompt_tokens": 1, "completion_tokens": 7}})

    async def ask() -> int:
        async with httpx.AsyncClient(base_url="http://here", transport=httpx.MockTransport(answer)) as http:
            target = Target("http://here", "bench", stream=False)
            return (await _ask(http, target, Question([], 7, dict(sampling)))).num_output_tokens

    assert asyncio.run(ask()) == 7
    [body] = bodies
    fields = {"temperature": 0.0} | sampling
    assert {name: body[name] for name in fields} == fields
    assert set(body) - set(fields) == {"model", "messages", "max_tokens", "min_tokens", "ignore_eos"}
