"""A small web on the loopback interface: real connections, scripted answers, and a resolver that knows its names."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_network

from trifocal.media.fetch.policy import FetchPolicy

Page = bytes | Callable[[asyncio.StreamWriter], Awaitable[None]]
LOOPBACK = (ip_network("127.0.0.0/8"),)
HERE = FetchPolicy(networks=LOOPBACK)


def ok(body: bytes, *headers: str) -> bytes:
    """A whole answer."""
    lines = ["HTTP/1.1 200 OK", f"content-length: {len(body)}", *headers]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def moved(location: str, status: int = 302) -> bytes:
    """A redirect."""
    return f"HTTP/1.1 {status} Moved\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n".encode("latin-1")


@dataclass
class Request:
    """What came: the address it came to, the path, the headers by lower-case name."""

    address: str
    path: str
    headers: dict[str, str]


@dataclass
class Web:
    """Answers by path, one request a connection. `closed` counts clients that hung up while being answered."""

    pages: Mapping[str, Page]
    requests: list[Request] = field(default_factory=list)
    closed: int = 0
    port: int = 0

    @property
    def paths(self) -> list[str]:
        return [request.path for request in self.requests]

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        path = lines[0].split()[1]
        self.requests.append(Request(writer.get_extra_info("sockname")[0], path, headers))
        page = self.pages.get(path, b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
        try:
            if callable(page):
                await page(writer)
            else:
                writer.write(page)
                await writer.drain()
        except ConnectionError:
            self.closed += 1
        finally:
            writer.close()


@asynccontextmanager
async def serving(pages: Mapping[str, Page], host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[Web]:
    """The web, on a free port."""
    web = Web(pages)
    async with await asyncio.start_server(web.answer, host, port) as server:
        web.port = server.sockets[0].getsockname()[1]
        yield web


class Names:
    """A resolver: names to addresses, or to a list of answers that are given one after the other.

    Addresses stand for themselves, as with the system's own.
    """

    def __init__(self, **names: str | list[str]) -> None:
        self._names = {name.replace("_", "."): value for name, value in names.items()}
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> list[str]:
        if set(host) <= set("0123456789abcdef.:"):
            return [host]
        self.asked.append(host)
        found = self._names.get(host)
        if found is None:
            raise OSError(-2, "Name or service not known")
        return (found if isinstance(found, str) else found.pop(0)).split()
