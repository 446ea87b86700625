"""What nobody foresaw: a 500 with its request id, one discreet line in the log, and the server goes on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from fastapi import FastAPI
from starlette.responses import Response, StreamingResponse

from trifocal.api.app import create_app
from trifocal.config.engine import EngineArgs, resolve
from trifocal.config.server import ServerArgs
from trifocal.errors import EngineDeadError, RequestError
from trifocal.log import DiscreetFormatter
from trifocal.types import EngineStats

SECRET = "the prompt"


async def _broken_stream() -> AsyncIterator[bytes]:
    yield b"begun"
    raise KeyError(SECRET)


async def surprise() -> Response:
    raise ValueError(f"cannot handle {SECRET} at 0x7f00deadbeef")


async def fault() -> Response:
    raise RequestError("the file /dev/shm/trifocal-x/abc is gone at 0x7f00deadbeef", status=500, code="engine_fault")


async def death() -> Response:
    raise EngineDeadError("RuntimeError: /some/library.so at 0x7f00deadbeef")


async def full() -> Response:
    raise RequestError("no room for media: No space left on device", status=503, code="overloaded")


async def breaking() -> Response:
    return StreamingResponse(_broken_stream())


@pytest.fixture
def app(checkpoint: Path) -> FastAPI:
    """The application with routes that fail; it has no engine, and they ask for none."""
    app = create_app(cast(Any, None), cast(Any, None), resolve(EngineArgs(model=str(checkpoint))), ServerArgs())
    for route in (surprise, fault, death, full, breaking):
        app.add_api_route(f"/{route.__name__}", route, response_model=None)
    return app


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
        yield http


@pytest.mark.parametrize(
    ("path", "status", "code", "says"),
    [
        ("/surprise", 500, "internal_error", "internal error"),
        ("/fault", 500, "engine_fault", "the file …/abc is gone at 0x…"),
        ("/death", 503, "engine_dead", "the engine is down"),
        ("/full", 503, "overloaded", "no room for media"),
    ],
)
async def test_a_failure_is_answered(
    app: FastAPI,
    client: httpx.AsyncClient,
    caplog: pytest.LogCaptureFixture,
    path: str,
    status: int,
    code: str,
    says: str,
) -> None:
    caplog.set_level(logging.INFO, "trifocal")
    response = await client.get(path, headers={"x-request-id": "an-id"})
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["type"]) == (status, code, "server_error")
    assert ("retry-after" in response.headers) == (status == 503)
    assert response.headers["x-request-id"] == "an-id" and says in error["message"]
    assert SECRET not in response.text and "0x7f" not in response.text
    lines = [DiscreetFormatter().format(record) for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(lines) == (1 if status == 500 else 0)
    for line in lines:
        assert "0x7f" not in line and SECRET not in line and "/dev/shm" not in line and "\n" not in line
    shown = app.state.service.metrics.render([EngineStats()]).decode()
    assert f'trifocal:requests_refused_total{{code="{code}",model_name=' in shown
    assert f'route="{path}",status="{status}"' in shown


async def test_an_id_that_is_no_id_is_replaced(client: httpx.AsyncClient) -> None:
    for bad in ("a b", "x" * 200, "é".encode(), "a;b"):
        response = await client.get("/surprise", headers={"x-request-id": bad})
        assert len(response.headers["x-request-id"]) == 32


async def test_an_answer_that_breaks_off_stays_incomplete(app: FastAPI) -> None:
    """The status is gone; that there is no last piece is what tells: uvicorn closes the connection then."""
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.sleep(60)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/breaking", "raw_path": b"/breaking", "headers": [],
             "query_string": b"", "scheme": "http", "server": ("t", 80), "client": ("c", 1)}  # fmt: skip
    await app(scope, receive, send)
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    shown = app.state.service.metrics.render([EngineStats()]).decode()
    assert sent[1]["more_body"] and 'trifocal:requests_refused_total{code="internal_error"' in shown
