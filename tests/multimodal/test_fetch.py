"""Media URLs: what is fetched, what is refused, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import base64
import os
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from trifocal.multimodal import fetch
from trifocal.multimodal.fetch import Fetcher
from trifocal.types import ConfigError, RequestError

WHERE = "messages[0].content[1].image_url"
POOL = ThreadPoolExecutor(2)
Handler = Callable[[httpx.Request], httpx.Response]


def get(url: str, root: str | None = None, handler: Handler | None = None) -> bytes:
    """Fetch one URL with a fetcher of its own; `handler` plays the web."""

    async def run() -> bytes:
        fetcher = Fetcher(POOL, root, None if handler is None else httpx.MockTransport(handler))
        try:
            return await fetcher.fetch(url, "image", WHERE)
        finally:
            await fetcher.aclose()

    return asyncio.run(run())


def refused(url: str, message: str, root: str | None = None, handler: Handler | None = None) -> None:
    """Assert that fetching is refused with 400 and the item's place."""
    with pytest.raises(RequestError, match=message) as caught:
        get(url, root, handler)
    error = caught.value
    assert error.message.startswith(f"{WHERE}: ") and (error.param, error.status) == ("messages", 400)
    assert len(error.message) < 400


# ------------------------------------------------------------------------------------------------- data:


@pytest.mark.parametrize("head", ["data:image/png;base64", "data:;base64", "DATA:image/png;charset=x;BASE64"])
def test_data_urls(head: str) -> None:
    data = bytes(range(256))
    text = base64.b64encode(data).decode()
    assert get(f"{head},{text}") == data
    assert get(f"{head},{text[:76]}\r\n{text[76:]}\n") == data
    assert get(f"{head},{text.replace('+', '%2B').replace('=', '%3D')}") == data


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("data:image/png;base64,AAA", "base64"),
        ("data:image/png;base64,A!!A", "base64"),
        ("data:image/png;base64,ÄÄÄÄ", "base64"),
        ("data:image/png,hello", "must be base64"),
        ("data:image/png;base64", "no comma"),
    ],
)
def test_bad_data_urls(url: str, message: str) -> None:
    refused(url, message)


def test_data_url_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fetch.MAX_BYTES, "image", 1 << 20)
    text = base64.b64encode(bytes((1 << 20) + 64)).decode()
    refused(f"data:image/png;base64,{text}", "larger than 1 MiB")


def test_base64_is_decoded_off_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []
    original = fetch._decode_data_url
    monkeypatch.setattr(
        fetch, "_decode_data_url", lambda *args: threads.append(threading.current_thread()) or original(*args)
    )
    assert get("data:;base64,AAAA") == b"\0\0\0"
    assert threads and threads[0] is not threading.main_thread()


@pytest.mark.parametrize("url", ["ftp://host/x", "cat.png", "/etc/passwd", "javascript:alert(1)", " ", "x" * 10**6])
def test_other_schemes(url: str) -> None:
    refused(url, "is no data:, http:, https: or file: URL")


# ------------------------------------------------------------------------------------------------- http:


def test_http_and_redirects() -> None:
    def web(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/old":
            return httpx.Response(302, headers={"location": "https://other.example/new"})
        return httpx.Response(200, content=request.url.host.encode())

    assert get("http://example.org/x", handler=web) == b"example.org"
    assert get("HTTPS://example.org/old", handler=web) == b"other.example"


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (httpx.Response(404), "answered 404 Not Found"),
        (httpx.Response(500), "answered 500"),
        (httpx.Response(204), "answered 204"),
        (httpx.Response(302, headers={"location": "/x"}), "redirects more than 5 times"),
    ],
)
def test_bad_answers(response: httpx.Response, message: str) -> None:
    refused("http://example.org/x", message, handler=lambda _: response)


async def test_a_redirect_to_a_file_is_not_followed() -> None:
    """Over a real connection: the client's own transport knows http and https only."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 302 Found\r\nlocation: file:///etc/passwd\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    fetcher = Fetcher(POOL)
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(RequestError, match="cannot be fetched"):
            await fetcher.fetch(f"http://127.0.0.1:{port}/x", "image", WHERE)
    await fetcher.aclose()


@pytest.mark.parametrize("url", ["http://", "http://[::1", "http:///nohost"])
def test_bad_addresses(url: str) -> None:
    refused(url, "cannot be fetched")


def test_connection_errors() -> None:
    def web(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("no route to host", request=request)

    refused("http://example.org/x", "no route to host", handler=web)


class Endless(httpx.AsyncByteStream):
    """A body that never ends; counts what was read and whether it was closed."""

    def __init__(self, chunk: bytes, pause: float = 0.0) -> None:
        self.chunk, self.pause = chunk, pause
        self.sent, self.is_closed = 0, False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            await asyncio.sleep(self.pause)
            self.sent += len(self.chunk)
            yield self.chunk

    async def aclose(self) -> None:
        self.is_closed = True


def test_size_is_capped_while_streaming(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fetch.MAX_BYTES, "image", 1 << 20)
    body = Endless(bytes(1 << 16))
    refused("http://example.org/x", "larger than 1 MiB", handler=lambda _: httpx.Response(200, stream=body))
    assert body.sent <= (1 << 20) + (1 << 16) and body.is_closed


def test_slow_body_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit holds for the whole fetch: a drop at a time does not stretch it."""
    monkeypatch.setenv("VLLM_IMAGE_FETCH_TIMEOUT", "0.2")
    body = Endless(b"x", pause=0.02)
    refused(
        "http://example.org/x", r"within 0\.2 seconds \(VLLM_IMAGE_FETCH_TIMEOUT\)",
        handler=lambda _: httpx.Response(200, stream=body),
    )  # fmt: skip
    assert body.is_closed


async def test_cancelling_closes_the_connection() -> None:
    body = Endless(b"x", pause=0.01)
    fetcher = Fetcher(POOL, None, httpx.MockTransport(lambda _: httpx.Response(200, stream=body)))
    task = asyncio.create_task(fetcher.fetch("http://example.org/x", "image", WHERE))
    while not body.sent:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert body.is_closed
    await fetcher.aclose()


# ------------------------------------------------------------------------------------------------- file:


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An allowed folder with a picture in it, and a secret beside it."""
    folder = tmp_path / "media"
    (folder / "deep").mkdir(parents=True)
    (folder / "a cat.png").write_bytes(b"cat")
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "media-other").mkdir()
    (tmp_path / "media-other" / "x").write_bytes(b"secret")
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "inside").symlink_to(folder / "a cat.png")
    os.mkfifo(folder / "pipe")
    return folder


def test_files_under_the_allowed_folder(root: Path) -> None:
    assert get(f"file://{root}/a%20cat.png", str(root)) == b"cat"
    assert get(f"file://localhost{root}/deep/../a cat.png", str(root)) == b"cat"
    assert get(f"file:{root}/inside", str(root)) == b"cat"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/../secret", "not under"),
        ("/%2e%2e/secret", "not under"),
        ("/deep/../../secret", "not under"),
        ("/link", "not under"),
        ("-other/x", "not under"),
        ("/none.png", "no file"),
        ("/deep", "no file"),
        ("/pipe", "no file"),
        ("/a%00b", "cannot be read|no file|not under"),
    ],
)
def test_files_that_are_refused(root: Path, path: str, message: str) -> None:
    refused(f"file://{root}{path}", message, str(root))


def test_file_urls_need_a_folder_and_no_host(root: Path) -> None:
    refused(f"file://{root}/a%20cat.png", "--allowed-local-media-path")
    refused(f"file://server{root}/a%20cat.png", "not a host", str(root))
    with pytest.raises(ConfigError, match="not a folder"):
        Fetcher(POOL, str(root / "a cat.png"))


def test_file_size(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fetch.MAX_BYTES, "image", 2)
    refused(f"file://{root}/a%20cat.png", "larger", str(root))
