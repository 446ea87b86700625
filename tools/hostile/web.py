"""The far end: a server that cheats in every way that HTTP allows, and a canary that nobody may reach."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from tools.hostile.pictures import sample

HOST = "127.0.0.2"  # the one address that the attacked server may fetch from
CANARY_HOSTS = ("127.0.0.1", "::1")
_DRIP_S = 0.2
_LONGEST_S = 60.0  # for which a dripping answer is kept up


@dataclass
class Web:
    """Ports of the two, and what came to the canary."""

    port: int = 0
    canary_port: int = 0
    reached: list[str] = field(default_factory=list)


def _answer(head: str, body: bytes = b"", status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", *head.splitlines()]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def _pages(canary: int) -> dict[str, bytes]:
    good = sample("PNG")
    length = f"content-length: {len(good)}"
    return {
        "redirect-inside": _answer(f"location: http://127.0.0.1:{canary}/", status="302 Found"),
        "redirect-mapped": _answer(f"location: http://[::ffff:127.0.0.1]:{canary}/", status="307 Found"),
        "redirect-file": _answer("location: file:///etc/passwd", status="302 Found"),
        "redirect-data": _answer("location: data:;base64,AAAA", status="302 Found"),
        "redirect-loop": _answer("location: /redirect-loop", status="301 Moved"),
        "gzip": _answer("content-encoding: gzip", gzip.compress(good)),
        "gzip-bomb": _answer("content-encoding: gzip", gzip.compress(bytes(100 << 20))),
        "gzip-twice": _answer("content-encoding: gzip, gzip", gzip.compress(gzip.compress(good))),
        "gzip-empty": _answer("content-encoding: gzip", gzip.compress(b"") * 500_000),
        "gzip-cut": _answer("content-encoding: gzip", gzip.compress(good)[:-9]),
        "gzip-lie": _answer("content-encoding: gzip", good),
        "deflate": _answer("content-encoding: deflate", zlib.compress(good)),
        "br": _answer("content-encoding: br", good),
        "odd-encoding": _answer("content-encoding: " + "x" * 10_000, good),
        "short-length": _answer("content-length: 1000000", good),
        "long-length": _answer("content-length: 10", good),
        "huge-length": _answer("content-length: 99999999999999999999", good),
        "negative-length": _answer("content-length: -1", good),
        "two-lengths": _answer("content-length: 10\ncontent-length: 20", good),
        "no-status": b"\r\n\r\n",
        "garbage": bytes(range(256)) * 100,
        "huge-header": _answer("x: " + "y" * 1_000_000, good),
        "many-headers": _answer("\n".join(f"x{k}: y" for k in range(50_000)), good),
        "204": _answer("", status="204 No Content"),
        "206": _answer(length, good, status="206 Partial Content"),
        "304": _answer("", status="304 Not Modified"),
        "404": _answer("content-length: 0", status="404 Not Found"),
        "500": _answer("content-length: 0", status="500 Oops"),
        "401": _answer('content-length: 0\nwww-authenticate: Basic realm="x"', status="401 Unauthorized"),
        "100": b"HTTP/1.1 100 Continue\r\n\r\n" * 1000,
        "reset": b"",
        "html": _answer("content-type: image/png", b"<html><img src=http://127.0.0.1/></html>"),
        "empty": _answer("content-length: 0"),
        "cookie": _answer(f"set-cookie: a=b\n{length}", good),
        "upgrade": _answer("upgrade: websocket\nconnection: upgrade", status="101 Switching"),
        "good": _answer(length, good),
    }


@asynccontextmanager
async def hostile_web() -> AsyncIterator[Web]:
    """Both servers, for as long as the block runs."""
    web = Web()

    async def canary(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        web.reached.append((await reader.read(200)).decode("latin-1"))
        writer.close()

    async def cheat(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await _cheat(reader, writer, web.canary_port)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()

    async with AsyncExitStack() as scope:
        for host in CANARY_HOSTS:
            server = await asyncio.start_server(canary, host, web.canary_port)
            await scope.enter_async_context(server)
            web.canary_port = server.sockets[0].getsockname()[1]
        server = await asyncio.start_server(cheat, HOST, 0)
        await scope.enter_async_context(server)
        web.port = server.sockets[0].getsockname()[1]
        yield web


async def _cheat(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, canary: int) -> None:
    request = await reader.readuntil(b"\r\n\r\n")
    page = request.split()[1].decode("latin-1").lstrip("/")
    if page == "slow-body":
        await _drip(writer, _answer("content-length: 100000"), b"x")
    elif page == "slow-headers":
        await _drip(writer, b"HTTP/1.1 200 OK\r\n", b"x: y\r\n")
    elif page == "endless":
        await _pour(writer, _answer(""), bytes(1 << 20))
    elif page == "chunked":
        await _pour(writer, _answer("transfer-encoding: chunked"), b"100000\r\n" + bytes(1 << 20) + b"\r\n")
    else:
        writer.write(_pages(canary).get(page, _answer("content-length: 0", status="404 Not Found")))
        await writer.drain()


async def _drip(writer: asyncio.StreamWriter, head: bytes, drop: bytes) -> None:
    writer.write(head)
    for _ in range(int(_LONGEST_S / _DRIP_S)):
        writer.write(drop)
        await writer.drain()
        await asyncio.sleep(_DRIP_S)


async def _pour(writer: asyncio.StreamWriter, head: bytes, bucket: bytes) -> None:
    writer.write(head)
    while True:  # until the other side hangs up
        writer.write(bucket)
        await writer.drain()
