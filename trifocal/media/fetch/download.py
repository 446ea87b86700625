"""http(s) downloads for strangers: every address is checked, and the connection goes to the one that was checked.

httpcore alone, because a client library does what must not be done here: it follows redirects, unpacks compressed
bodies without limits, keeps cookies and reads proxies from the environment.
"""

from __future__ import annotations

import asyncio
import socket
from base64 import b64encode
from collections.abc import Awaitable, Callable, Iterable
from http import HTTPStatus

import httpcore
import httpx

from trifocal.media.fetch.policy import FetchPolicy, ForbiddenError
from trifocal.media.fetch.unpacking import TooLargeError, Unpacker, UnpackError
from trifocal.media.watch import watching
from trifocal.threads import Threads

__all__ = ["Downloader", "DownloadError", "Resolver", "SystemResolver", "TooLargeError"]

_MAX_REDIRECTS = 5
_MAX_CONNECTIONS = 100
_KEEP_S = 5.0  # an idle connection was checked when it was made; it is not kept for long
_NEXT_ADDRESS_S = 2.0  # to give up on an address while there are others
_LOOKUPS_AT_ONCE = 16
_REDIRECTS = (301, 302, 303, 307, 308)
_FAILURES = (
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.ProxyError,
    httpcore.UnsupportedProtocol,
    httpx.InvalidURL,
    ValueError,
    OSError,
)

Resolver = Callable[[str, int], Awaitable[list[str]]]
"""(host, port) -> its addresses, in the order to try them. Raises `OSError`."""


class DownloadError(Exception):
    """A download that failed or was refused; the message goes on from the URL ("… answered 404 Not Found")."""


class Downloader:
    """Downloads for one event loop. The connection pool, and with it TLS set-up, is made on the first URL."""

    def __init__(self, policy: FetchPolicy, resolver: Resolver | None = None, *, allows_redirects: bool = True) -> None:
        self._policy = policy
        self._allows_redirects = allows_redirects
        self._resolver = resolver or SystemResolver()
        self._pool: httpcore.AsyncConnectionPool | None = None

    async def get(self, url: str, max_bytes: int) -> bytes:
        """The body behind `url`. Raises `DownloadError`, `TooLargeError`; time is for the caller to limit."""
        try:
            return await self._follow(httpx.URL(url), max_bytes)
        except UnpackError as error:
            raise DownloadError(str(error)) from None
        except ForbiddenError as error:
            raise DownloadError(f"may not be fetched: {error}") from None
        except httpcore.TimeoutException:
            raise DownloadError("cannot be fetched: the connection timed out") from None
        except _FAILURES as error:
            raise DownloadError(f"cannot be fetched: {error or type(error).__name__}") from None

    async def aclose(self) -> None:
        if self._pool is not None:
            await self._pool.aclose()
            self._pool = None

    async def _follow(self, url: httpx.URL, max_bytes: int) -> bytes:
        for _ in range(_MAX_REDIRECTS + 1):
            self._policy.check_url(url)
            async with self._connections().stream("GET", _core_url(url), headers=_headers(url)) as response:
                location = _header(response, b"location") if response.status in _REDIRECTS else None
                if location is None:
                    return await _body(response, max_bytes)
            if not self._allows_redirects:
                raise DownloadError("redirects, which VLLM_MEDIA_URL_ALLOW_REDIRECTS=0 forbids")
            url = url.join(location)
        raise DownloadError(f"redirects more than {_MAX_REDIRECTS} times")

    def _connections(self) -> httpcore.AsyncConnectionPool:
        if self._pool is None:
            proxy = self._policy.proxy
            self._pool = httpcore.AsyncConnectionPool(
                ssl_context=httpx.create_ssl_context(),
                proxy=None if proxy is None else httpcore.Proxy(proxy),
                max_connections=_MAX_CONNECTIONS,
                keepalive_expiry=_KEEP_S,
                network_backend=CheckedBackend(self._policy, self._resolver) if proxy is None else None,
            )
        return self._pool


class CheckedBackend(httpcore.AnyIOBackend):
    """Connects to addresses that were checked: no second look-up follows that might answer differently.

    TLS is not touched by this: certificates are compared with the host's name, as always.
    """

    def __init__(self, policy: FetchPolicy, resolver: Resolver) -> None:
        super().__init__()
        self._policy = policy
        self._resolver = resolver

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """A connection to the first address of `host` that answers. Raises `ForbiddenError` if any is not allowed."""
        addresses = await self._resolver(host, port)
        self._policy.check_addresses(host, addresses)
        for address in addresses[:-1]:
            try:
                return await super().connect_tcp(address, port, _NEXT_ADDRESS_S, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return await super().connect_tcp(addresses[-1], port, timeout, local_address, socket_options)


class SystemResolver:
    """Asks the system, in threads of its own: names that nobody answers for must not fill those of the event loop."""

    def __init__(self) -> None:
        self._threads: Threads | None = None

    async def __call__(self, host: str, port: int) -> list[str]:
        """Every address once, in the system's order."""
        if self._threads is None:
            self._threads = Threads(_LOOKUPS_AT_ONCE, "resolve")
        found = await asyncio.get_running_loop().run_in_executor(self._threads, _look_up, host, port)
        return list(dict.fromkeys(found))


def _look_up(host: str, port: int) -> list[str]:
    try:
        answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError:  # a label of more than 63 characters
        raise OSError(f"{host[:80]!r} is not the name of a host") from None
    return [str(answer[4][0]) for answer in answers]


async def _body(response: httpcore.Response, max_bytes: int) -> bytes:
    if response.status != 200:
        raise DownloadError(f"answered {response.status} {_phrase(response.status)}".rstrip())
    unpacker = Unpacker(_header(response, b"content-encoding") or "", max_bytes)  # none was asked for
    announced = _header(response, b"content-length") or ""
    if announced.isdecimal() and int(announced[:20]) > max_bytes:
        raise TooLargeError
    body = bytearray()
    async for chunk in response.aiter_stream():
        unpacked = unpacker.feed(chunk)
        watching.get().fetched(max(len(chunk), len(unpacked)))
        body += unpacked
    unpacker.end()
    return bytes(body)


def _core_url(url: httpx.URL) -> httpcore.URL:
    return httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)


def _headers(url: httpx.URL) -> list[tuple[bytes, bytes]]:
    headers = [
        (b"Host", url.netloc),
        (b"User-Agent", b"trifocal"),
        (b"Accept", b"*/*"),
        (b"Accept-Encoding", b"identity"),
    ]
    if url.userinfo:
        login = b64encode(f"{url.username}:{url.password}".encode())
        headers.append((b"Authorization", b"Basic " + login))
    return headers


def _header(response: httpcore.Response, name: bytes) -> str | None:
    return next((value.decode("latin-1").strip() for key, value in response.headers if key.lower() == name), None)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase  # the server's own words would be a stranger's text in our answer
    except ValueError:
        return ""
