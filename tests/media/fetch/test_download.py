"""Downloads over real connections; only names are made up, at the resolver."""

from __future__ import annotations

import asyncio
import gzip
import random
import shutil
import socket
import ssl
import subprocess
import time
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.media.fetch.web import HERE, LOOPBACK, Names, Page, Web, moved, ok, serving
from trifocal.media.fetch.download import Downloader, DownloadError, Resolver, SystemResolver, TooLargeError
from trifocal.media.fetch.policy import FetchPolicy

MAX = 1 << 20


@pytest.fixture
async def web() -> AsyncIterator[Web]:
    async with serving({"/cat": ok(b"cat")}) as made:
        yield made


async def get(url: str, policy: FetchPolicy = HERE, resolver: Resolver | None = None, max_bytes: int = MAX) -> bytes:
    downloader = Downloader(policy, resolver)
    try:
        return await asyncio.wait_for(downloader.get(url, max_bytes), 30)
    finally:
        await downloader.aclose()


async def refused(url: str, message: str, policy: FetchPolicy = HERE, resolver: Resolver | None = None) -> None:
    with pytest.raises(DownloadError, match=message):
        await get(url, policy, resolver)


async def eventually(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.01)


# ------------------------------------------------------------------------------------------------- addresses


async def test_a_body(web: Web) -> None:
    assert await get(f"http://cat.example:{web.port}/cat", HERE, Names(cat_example="127.0.0.1")) == b"cat"
    [request] = web.requests
    assert request.headers["host"] == f"cat.example:{web.port}"
    assert request.headers["accept-encoding"] == "identity"
    assert "cookie" not in request.headers and "authorization" not in request.headers


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]", "127.1", "[::1]"]
)
async def test_the_machine_itself_is_out_of_reach(web: Web, host: str) -> None:
    await refused(
        f"http://{host}:{web.port}/cat", "may not be fetched: .* is not on the public internet", FetchPolicy()
    )
    assert not web.requests


async def test_names_of_inner_addresses(web: Web) -> None:
    for address in ("127.0.0.1", "10.0.0.1", "1.1.1.1 127.0.0.1", "::1"):
        await refused(f"http://a.example:{web.port}/cat", "public internet", FetchPolicy(), Names(a_example=address))
    assert not web.requests


async def test_rebinding(web: Web) -> None:
    """A name that is harmless when it is checked and the metadata service when it is used: it is looked up once."""
    async with serving({"/cat": ok(b"the checked one")}, "127.0.0.2", web.port) as checked:
        names = Names(rebind_example=["127.0.0.2", "127.0.0.1", "127.0.0.1"])
        policy = FetchPolicy.from_flags(allowed_media_networks=["127.0.0.2"])
        assert await get(f"http://rebind.example:{web.port}/cat", policy, names) == b"the checked one"
        await refused(f"http://rebind.example:{web.port}/cat", "public internet", policy, names)
        assert names.asked == ["rebind.example"] * 2
        assert checked.paths == ["/cat"] and not web.requests


async def test_the_next_address_is_tried(web: Web) -> None:
    """Nobody listens on the first one."""
    assert await get(f"http://two.example:{web.port}/cat", HERE, Names(two_example="127.0.0.9 127.0.0.1")) == b"cat"
    await refused(
        f"http://none.example:{web.port}/", "cannot be fetched", HERE, Names(none_example="127.0.0.8 127.0.0.9")
    )


async def test_names_that_do_not_exist() -> None:
    await refused("http://nowhere.example/", "Name or service not known", HERE, Names())
    await refused(f"http://{'a' * 70}.example/", "cannot be fetched", HERE)


async def test_listed_domains(web: Web) -> None:
    policy = FetchPolicy.from_flags(allowed_media_domains=["media.corp"])
    names = Names(media_corp="127.0.0.1", other_corp="127.0.0.1")
    assert await get(f"http://media.corp:{web.port}/cat", policy, names) == b"cat"
    await refused(f"http://other.corp:{web.port}/cat", "allowed-media-domains", policy, names)
    assert names.asked == ["media.corp"]


async def test_names_are_looked_up_beside_the_loops_own_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that nobody answers for would otherwise stop whatever else the server does in threads."""

    def never(*_: object, **__: object) -> list[object]:
        time.sleep(0.5)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", never)
    lookups = [asyncio.create_task(SystemResolver()("slow.example", 80)) for _ in range(4)]
    await asyncio.sleep(0.05)
    before = time.monotonic()
    await asyncio.gather(*(asyncio.to_thread(int) for _ in range(40)))
    assert time.monotonic() - before < 0.4
    await asyncio.gather(*lookups)


# ------------------------------------------------------------------------------------------------- redirects


def redirecting(port: int) -> dict[str, Page]:
    return {
        "/relative": moved("cat"),
        "/absolute": moved(f"http://cat.example:{port}/cat", 308),
        "/inside": moved("http://inside.example/"),
        "/literal": moved(f"http://127.0.0.1:{port}/secret"),
        "/mapped": moved(f"http://[::ffff:127.0.0.1]:{port}/secret"),
        "/file": moved("file:///etc/passwd"),
        "/data": moved("data:;base64,AAAA"),
        "/scheme": moved("gopher://cat.example/_x"),
        "/loop": moved("/loop"),
        "/nowhere": b"HTTP/1.1 302 Found\r\ncontent-length: 0\r\n\r\n",
        "/bad": moved("http://[::1"),
        "/cat": ok(b"cat"),
        "/secret": ok(b"secret"),
    }


async def test_redirects_are_checked_hop_by_hop(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving({}, "127.0.0.2") as web:
        web.pages = redirecting(web.port)
        policy = FetchPolicy.from_flags(allowed_media_networks=["127.0.0.2"])
        names = Names(cat_example="127.0.0.2", inside_example="10.0.0.1")
        base = f"http://cat.example:{web.port}"
        assert await get(f"{base}/relative", policy, names) == b"cat"
        assert await get(f"{base}/absolute", policy, names) == b"cat"
        for path in ("inside", "literal", "mapped"):
            await refused(f"{base}/{path}", "public internet", policy, names)
        for path in ("file", "data", "scheme"):
            await refused(f"{base}/{path}", "neither http nor https", policy, names)
        await refused(f"{base}/loop", "redirects more than 5 times", policy, names)
        await refused(f"{base}/nowhere", "answered 302", policy, names)
        await refused(f"{base}/bad", "cannot be fetched", policy, names)
        assert "/secret" not in web.paths and web.paths.count("/loop") == 6
        domains = replace(policy, domains=frozenset({"cat.example"}))
        await refused(f"{base}/inside", "allowed-media-domains", domains, names)
        direct = Downloader(policy, names, allows_redirects=False)
        with pytest.raises(DownloadError, match="VLLM_MEDIA_URL_ALLOW_REDIRECTS=0"):
            await direct.get(f"{base}/relative", 1 << 20)
        assert await direct.get(f"{base}/cat", 1 << 20) == b"cat"
        await direct.aclose()


async def test_a_password_goes_to_the_host_it_was_written_for() -> None:
    async with serving({}) as web:
        web.pages = {"/a": moved(f"http://other.example:{web.port}/b"), "/b": ok(b"b")}
        names = Names(one_example="127.0.0.1", other_example="127.0.0.1")
        assert await get(f"http://me:p%40ss@one.example:{web.port}/a", HERE, names) == b"b"
        assert [request.headers.get("authorization") for request in web.requests] == ["Basic bWU6cEBzcw==", None]


# ------------------------------------------------------------------------------------------------- bodies


async def endless(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\n\r\n")
    while True:
        writer.write(bytes(1 << 16))
        await writer.drain()


async def chunked(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"10000\r\n" + bytes(1 << 16) + b"\r\n")
        await writer.drain()


async def dripping(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.01)


async def dripping_headers(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"x: y\r\n")
        await writer.drain()
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("page", [endless, chunked])
async def test_size_is_capped_while_streaming(page: Page) -> None:
    async with serving({"/": page}) as web:
        with pytest.raises(TooLargeError):
            await get(f"http://127.0.0.1:{web.port}/")
        await eventually(lambda: web.closed == 1)  # it was not read to its end: it has none


async def test_announced_sizes() -> None:
    """A body is refused by a length that is too large, and by one that is a lie."""
    pages = {
        "/large": b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n" + bytes(10),
        "/short": b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nonly this",
        "/long": b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfour and more",
        "/two": b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\ncontent-length: 9\r\n\r\nfour",
        "/minus": b"HTTP/1.1 200 OK\r\ncontent-length: -4\r\n\r\nfour",
        "/exact": ok(bytes(MAX)),
    }
    async with serving(pages) as web:
        base = f"http://127.0.0.1:{web.port}"
        with pytest.raises(TooLargeError):
            await get(f"{base}/large")
        assert await get(f"{base}/long") == b"four"
        assert len(await get(f"{base}/exact")) == MAX
        for path in ("short", "two", "minus"):
            await refused(f"{base}/{path}", "cannot be fetched")


BODY = bytes(range(256)) * 300
PACKED = {
    "gzip": gzip.compress(BODY),
    "x-gzip": gzip.compress(BODY),
    "GZIP": gzip.compress(BODY[:1000]) + gzip.compress(BODY[1000:]),  # two files behind each other are one
    "identity, gzip": gzip.compress(BODY),
    "deflate": zlib.compress(BODY),
    "Deflate": zlib.compress(BODY, wbits=-15),  # as some servers understand the word
    "identity": BODY,
    "": BODY,
}


@pytest.mark.parametrize("encoding", PACKED)
async def test_compressed_bodies(encoding: str) -> None:
    """Nobody asked for them; there are hosts that send them all the same."""
    packed = PACKED[encoding]

    async def by_and_by(writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 200 OK\r\ncontent-encoding: {encoding}\r\n\r\n".encode())
        for start in range(0, len(packed), 100):
            writer.write(packed[start : start + 100])
            await writer.drain()

    async with serving({"/": ok(packed, f"content-encoding: {encoding}"), "/slow": by_and_by}) as web:
        assert await get(f"http://127.0.0.1:{web.port}/") == BODY
        assert await get(f"http://127.0.0.1:{web.port}/slow") == BODY


@pytest.mark.parametrize(
    ("encoding", "body", "message"),
    [
        ("br", b"x", "packed as 'br'; only gzip and deflate are read"),
        ("zstd", b"x", "packed as 'zstd'"),
        ("deflate, gzip", gzip.compress(zlib.compress(BODY)), "packed as 'deflate, gzip'"),
        ("gzip, gzip", gzip.compress(gzip.compress(BODY)), "packed as 'gzip, gzip'"),
        ("gzip", b"\x89PNG\r\n", "is not gzip, though its header says so"),
        ("deflate", b"\x89PNG\r\n", "is not deflate"),
        ("gzip", PACKED["gzip"][:-9], "gzip body that is cut off"),
        ("gzip", PACKED["gzip"][:-4] + bytes(4), "is not gzip"),
        ("gzip", PACKED["gzip"] + b"and more", "is not gzip"),
    ],
)
async def test_compressed_bodies_that_are_refused(encoding: str, body: bytes, message: str) -> None:
    async with serving({"/": ok(body, f"content-encoding: {encoding}")}) as web:
        await refused(f"http://127.0.0.1:{web.port}/", message)


async def test_compressed_bodies_have_limits() -> None:
    """The bytes that come out are counted, and how many come out of how few, before there is memory for them."""
    pages = {
        "/bomb": ok(gzip.compress(bytes(16 << 20)), "content-encoding: gzip"),
        "/many": ok(gzip.compress(bytes(3 << 20)) * 9, "content-encoding: gzip"),
        "/drawing": ok(gzip.compress(bytes(1 << 20)), "content-encoding: gzip"),
        "/large": ok(gzip.compress(random.Random(0).randbytes(3 << 20), 1), "content-encoding: gzip"),
        "/exact": ok(gzip.compress(bytes(MAX)), "content-encoding: gzip"),
        "/nothing": ok(gzip.compress(b"") * (MAX // 20 + 1), "content-encoding: gzip"),
        "/above": ok(gzip.compress(bytes(MAX + 1)), "content-encoding: gzip"),
    }
    async with serving(pages) as web:
        base = f"http://127.0.0.1:{web.port}"
        tracemalloc.start()
        for path in ("bomb", "many"):
            with pytest.raises(DownloadError, match="unpacks to more than 100 times its size"):
                await get(f"{base}/{path}", max_bytes=128 << 20)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
        tracemalloc.stop()
        assert await get(f"{base}/drawing", max_bytes=2 << 20) == bytes(1 << 20)
        assert len(await get(f"{base}/large", max_bytes=4 << 20)) == 3 << 20
        assert len(await get(f"{base}/exact")) == MAX
        for path in ("above", "large", "nothing"):
            with pytest.raises(TooLargeError):
                await get(f"{base}/{path}")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"HTTP/1.1 404 <script>\r\ncontent-length: 0\r\n\r\n", "answered 404 Not Found"),
        (b"HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n", "answered 500"),
        (b"HTTP/1.1 204 No\r\n\r\n", "answered 204"),
        (b"HTTP/1.1 799 Odd\r\ncontent-length: 0\r\n\r\n", "answered 799$"),
        (b"SSH-2.0-OpenSSH_9\r\n", "cannot be fetched"),
        (b"HTTP/1.1 200 OK\r\n" + b"x: " + b"y" * 200_000, "cannot be fetched"),
        (b"", "cannot be fetched"),
    ],
)
async def test_bad_answers(answer: bytes, message: str) -> None:
    async with serving({"/": answer}) as web:
        await refused(f"http://127.0.0.1:{web.port}/", message)


@pytest.mark.parametrize("page", [dripping, dripping_headers])
async def test_cancelling_closes_the_connection(page: Page) -> None:
    """What the time limit of `Fetcher` does, and a client that hangs up."""
    async with serving({"/": page}) as web:
        downloader = Downloader(HERE)
        task = asyncio.create_task(downloader.get(f"http://127.0.0.1:{web.port}/", MAX))
        await eventually(lambda: bool(web.requests))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await eventually(lambda: web.closed == 1)
        await downloader.aclose()


@pytest.mark.parametrize(
    "url", ["http://", "http://[::1", "http:///nohost", "http://a b/", "http://\x00/", "http://a\r\nb: c/"]
)
async def test_bad_urls(url: str) -> None:
    await refused(url, "cannot be fetched|may not be fetched")


async def test_nothing_is_smuggled_into_the_request() -> None:
    target = "/cat?a=%0d%0aevil:%20yes"
    async with serving({target: ok(b"cat")}) as web:
        assert await get(f"http://127.0.0.1:{web.port}{target}#fragment") == b"cat"
        assert web.paths == [target] and "evil" not in web.requests[0].headers


# ------------------------------------------------------------------------------------------------- proxy, TLS


async def test_proxy(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names go to the proxy as they are; variables alone make no proxy."""
    async with serving({"http://cat.example/cat": ok(b"through the proxy")}) as proxy:
        policy = FetchPolicy.from_flags(media_proxy=f"http://127.0.0.1:{proxy.port}")
        names = Names()
        assert await get("http://cat.example/cat", policy, names) == b"through the proxy"
        assert not names.asked
        await refused(f"http://127.0.0.1:{web.port}/cat", "public internet", policy)
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
        assert await get(f"http://127.0.0.1:{web.port}/cat") == b"cat"
        assert len(proxy.requests) == 1


async def test_certificates_are_compared_with_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connecting to an address must not weaken TLS: the name of the URL is what the certificate must bear."""
    if shutil.which("openssl") is None:
        pytest.skip("makes its certificate with openssl")
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=good.example", "-addext", "subjectAltName=DNS:good.example",
         "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    web = Web({"/cat": ok(b"cat")})
    names = Names(good_example="127.0.0.1", bad_example="127.0.0.1")
    async with await asyncio.start_server(web.answer, "127.0.0.1", 0, ssl=context) as server:
        port = server.sockets[0].getsockname()[1]
        assert await get(f"https://good.example:{port}/cat", FetchPolicy(networks=LOOPBACK), names) == b"cat"
        await refused(f"https://bad.example:{port}/cat", "certificate verify failed", HERE, names)
        await refused(f"https://127.0.0.1:{port}/cat", "certificate verify failed", HERE, names)
    assert web.paths == ["/cat"]
