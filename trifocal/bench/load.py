"""Requests over HTTP with a clock in hand: a bounded number at once, optionally at random arrival times."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import httpx

from trifocal.bench.workload import Question
from trifocal.cli.client import ServerError, is_loopback, normalise_url, parse_event


@dataclass(frozen=True)
class Target:
    """The server under test, and how it is asked; `fields` are further fields of each request."""

    url: str
    model: str
    stream: bool = True
    api_key: str | None = None
    temperature: float = 0.0
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Measured:
    """One request's times in seconds. `chunk_times` are moments at which text came, the first being the first token."""

    start: float
    end: float = 0.0
    chunk_times: list[float] = field(default_factory=list)
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    error: str | None = None


async def run_load(
    target: Target,
    questions: Sequence[Question],
    concurrency: int,
    request_rate: float = math.inf,
    on_done: Callable[[], object] = lambda: None,
) -> list[Measured]:
    """Send all questions, at most `concurrency` at once, arriving as a Poisson process of `request_rate` a second.

    A failed request has `error` set; the others go on.
    """
    gate = asyncio.Semaphore(concurrency)
    headers = {"Authorization": f"Bearer {target.api_key}"} if target.api_key else {}
    async with httpx.AsyncClient(
        base_url=normalise_url(target.url),
        headers=headers,
        timeout=httpx.Timeout(3600.0, connect=30.0),
        limits=httpx.Limits(max_connections=None),
        trust_env=not is_loopback(normalise_url(target.url)),
    ) as http:

        async def one(question: Question, delay: float) -> Measured:
            await asyncio.sleep(delay)
            async with gate:
                measured = await _ask(http, target, question)
            on_done()
            return measured

        return list(await asyncio.gather(*map(one, questions, _arrivals(len(questions), request_rate))))


def _arrivals(count: int, request_rate: float) -> list[float]:
    random, now, times = Random(0), 0.0, []
    for _ in range(count):
        times.append(now)
        now += random.expovariate(request_rate) if math.isfinite(request_rate) else 0.0
    return times


async def _ask(http: httpx.AsyncClient, target: Target, question: Question) -> Measured:
    body: dict[str, Any] = {
        "model": target.model,
        "messages": question.messages,
        "temperature": target.temperature,
        "max_tokens": question.output_tokens,
        "min_tokens": question.output_tokens,
        "ignore_eos": True,
        **question.sampling,
        **target.fields,
    }
    measured = Measured(time.perf_counter())
    try:
        if target.stream:
            await _stream(http, body, measured)
        else:
            response = await http.post("/v1/chat/completions", json=body)
            if response.status_code != 200:
                raise ServerError(f"{response.status_code} {response.text[:300]}")
            _take_usage(measured, response.json().get("usage"))
    except (httpx.HTTPError, ServerError, ValueError) as error:
        measured.error = str(error) or repr(error)
    measured.end = time.perf_counter()
    return measured


async def _stream(http: httpx.AsyncClient, body: dict[str, Any], measured: Measured) -> None:
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    async with http.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            await response.aread()
            raise ServerError(f"{response.status_code} {response.text[:300]}")
        async for line in response.aiter_lines():
            event = parse_event(line)
            if event is None:
                continue
            if event.get("choices") and event["choices"][0]["delta"].get("content"):
                measured.chunk_times.append(time.perf_counter())
            _take_usage(measured, event.get("usage"))


def _take_usage(measured: Measured, usage: dict[str, Any] | None) -> None:
    if usage:
        measured.num_prompt_tokens = usage["prompt_tokens"]
        measured.num_output_tokens = usage["completion_tokens"]
