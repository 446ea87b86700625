"""Connections that never become a request are closed; those that are one are left alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest

from trifocal.api.openai.errors import error_form
from trifocal.config.server import ServerArgs
from trifocal.http import connection
from trifocal.http.listen import HttpServer, bind

LIMIT_S = 0.3
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def application(
    scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
) -> None:
    """Refuses `/early` before it reads; answers others when their body is there, after a while."""
    if scope["path"] != "/early":
        while (await receive()).get("more_body"):
            pass
        await asyncio.sleep(2 * LIMIT_S)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
async def connect(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[[], Awaitable[Streams]]]:
    monkeypatch.setattr(connection, "_HEADERS_S", LIMIT_S)
    args = ServerArgs(host="127.0.0.1", port=0)
    started = asyncio.Event()
    with bind(args) as listener:
        server = HttpServer(application, args, started.set, error_form)
        serving = asyncio.create_task(server.serve([listener]))
        await started.wait()
        port = listener.getsockname()[1]
        yield lambda: asyncio.open_connection("127.0.0.1", port)
        server.should_exit = True
        await serving


async def all_of(reader: asyncio.StreamReader) -> bytes:
    """What comes until the connection is closed; it is reset where bytes were on their way that nobody read."""
    async with asyncio.timeout(30):
        with suppress(ConnectionResetError):
            return await reader.read()
    return b""


@pytest.mark.parametrize("beginning", [b"", b"G", b"GET /a HTTP/1.1\r\nHost: t\r\n"])
async def test_headers_that_do_not_come(connect: Callable[[], Awaitable[Streams]], beginning: bytes) -> None:
    reader, writer = await connect()
    writer.write(beginning)
    assert await all_of(reader) == b""
    writer.close()


async def test_dripping_does_not_help(connect: Callable[[], Awaitable[Streams]]) -> None:
    reader, writer = await connect()
    answer = asyncio.create_task(all_of(reader))
    began = asyncio.get_running_loop().time()
    for letter in b"GET /a HTTP/1.1\r\nHost: " + b"t" * 1000:
        writer.write(bytes([letter]))
        await asyncio.sleep(0.02)
        if answer.done():
            break
    assert await answer == b"" and asyncio.get_running_loop().time() - began < 15
    writer.close()


async def test_a_slow_body_and_a_slow_answer_are_no_matter_of_headers(
    connect: Callable[[], Awaitable[Streams]],
) -> None:
    reader, writer = await connect()
    writer.write(b"POST /late HTTP/1.1\r\nHost: t\r\nContent-Length: 4\r\n\r\nbo")
    await asyncio.sleep(2 * LIMIT_S)
    writer.write(b"dy")
    for _ in range(2):  # and the connection serves on
        async with asyncio.timeout(30):
            assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        writer.write(b"GET /late HTTP/1.1\r\nHost: t\r\n\r\n")
    writer.close()


async def test_the_rest_of_a_refused_body_has_its_time(connect: Callable[[], Awaitable[Streams]]) -> None:
    reader, writer = await connect()
    writer.write(b"POST /early HTTP/1.1\r\nHost: t\r\nContent-Length: 1000000\r\n\r\nbo")
    assert (await all_of(reader)).endswith(b"ok")
    writer.close()
