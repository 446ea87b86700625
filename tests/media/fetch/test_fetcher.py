"""Media URLs: what is fetched, what is refused by name, and that nothing is left behind. See also test_download.py."""

from __future__ import annotations

import asyncio
import base64
import os
import re
import socket
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from tests.media.fetch.test_download import dripping, endless
from tests.media.fetch.web import HERE, Page, ok, serving
from trifocal.errors import ConfigError, RequestError
from trifocal.media.fetch import fetcher as fetch
from trifocal.media.fetch.fetcher import Fetcher
from trifocal.media.fetch.policy import FetchPolicy
from trifocal.media.media import MediaRef
from trifocal.types import Modality

WHERE = "messages[0].content[1].image_url"
POOL = ThreadPoolExecutor(2)


def get(url: str, policy: FetchPolicy | None = None) -> bytes:
    """Fetch one URL with a fetcher of its own."""

    async def run() -> bytes:
        fetcher = Fetcher(POOL, policy)
        try:
            return await fetcher.fetch(url, "image", WHERE)
        finally:
            await fetcher.aclose()

    return asyncio.run(run())


def refused(url: str, message: str, policy: FetchPolicy | None = None) -> None:
    """Assert that fetching is refused with 400 and the item's place."""
    with pytest.raises(RequestError, match=message) as caught:
        get(url, policy)
    check(caught.value)


def check(error: RequestError) -> None:
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


@pytest.mark.parametrize("size", [0, 1, 2, 3, 254, 255, 256])
def test_base64_as_people_write_it(size: int) -> None:
    """Without padding, with some of it, in the alphabet for URLs, with spaces anywhere but in the scheme."""
    data = bytes(range(255, 255 - size, -1)) if size < 256 else bytes(range(256))
    text, safe = base64.b64encode(data).decode(), base64.urlsafe_b64encode(data).decode()
    half = len(text) // 2
    for payload in (text, safe, text.rstrip("="), safe.rstrip("="), text.removesuffix("="), f" {text}\n",
                    f"{text[:half]}\r\n\t {text[half:]}", f"{safe[:half]}\f\v{safe[half:]}".rstrip("=")):  # fmt: skip
        assert get(f"data:;base64,{payload}") == data
        assert get(f" \ndata:image/png; BASE64 , {payload}\n") == data


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("data:image/png;base64,AAAAA", "base64"),
        ("data:image/png;base64,A", "base64"),
        ("data:image/png;base64,AA=AAA==", "base64"),
        ("data:image/png;base64,====", "base64"),
        ("data:image/png;base64x,AAAA", "must be base64"),
        ("data:image/png;base64,A!!A", "base64"),
        ("data:image/png;base64,ÄÄÄÄ", "base64"),
        ("data:image/png,hello", "must be base64"),
        ("data:image/png;base64", "no comma"),
    ],
)
def test_bad_data_urls(url: str, message: str) -> None:
    refused(url, message)


def get_all(*sources: object) -> list[object]:
    """Fetch the sources of clips."""

    async def run() -> list[object]:
        fetcher = Fetcher(POOL, HERE)
        try:
            return await fetch.fetch_all([MediaRef("video", source, WHERE) for source in sources], fetcher)
        finally:
            await fetcher.aclose()

    return asyncio.run(run())


FRAMES = [bytes([k]) * (k + 1) for k in range(5)]


def frame_list(frames: list[bytes], head: str = "data:video/jpeg;base64") -> str:
    return f"{head},{','.join(base64.b64encode(frame).decode() for frame in frames)}"


@pytest.mark.parametrize("head", ["data:video/jpeg;base64", "DATA:Video/JPEG; base64", "\n data:video/jpeg;base64"])
def test_frames_of_a_clip_in_one_url(head: str) -> None:
    assert get_all(frame_list(FRAMES, head), "data:video/mp4;base64,AAAA") == [FRAMES, b"\0\0\0"]
    assert get_all(frame_list(FRAMES[:1], head)) == [FRAMES[:1]]


def test_frames_of_a_clip_as_urls() -> None:
    urls = [f"data:image/png;base64,{base64.b64encode(frame).decode()}" for frame in FRAMES]
    assert get_all(urls, ([*urls, 5], {"fps": 1}), 7) == [FRAMES, ([*FRAMES, 5], {"fps": 1}), 7]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("data:video/jpeg;base64,AAAA,A!AA", r"\[1\]: the data: URL is not valid base64"),
        ("data:video/png;base64,AAAA,AAAA", "a list of frames must begin with data:video/jpeg;base64,"),
        ("data:video/jpeg;base64", ": the data: URL has no comma"),
        ("data:video/jpeg,AAAA", ": the data: URL must be base64"),
        (["data:image/png;base64,AAAA", "nothing"], r"\[1\]: 'nothing' is not a data:"),
        ("data:video/jpeg;base64" + "," * 8193, "a list of 8193 frames, but at most 8192 are allowed"),
        (["http://127.0.0.1:9/"] * 1000, "1000 frames are given by URL, but at most 999 are"),
        (["data:"] * 8193, "a list of 8193 frames, but at most 8192 are allowed"),
    ],
)
def test_bad_lists_of_frames(source: object, message: str) -> None:
    with pytest.raises(RequestError, match=f"^{re.escape(WHERE)}.*{message}"):
        get_all(source)


def limit(monkeypatch: pytest.MonkeyPatch, modality: Modality, max_bytes: int) -> None:
    info = replace(fetch.MODALITIES[modality], max_bytes=max_bytes)
    monkeypatch.setattr(fetch, "MODALITIES", {**fetch.MODALITIES, modality: info})


def test_bytes_of_frames_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    url = frame_list([bytes(600)] * 4)
    limit(monkeypatch, "video", 2400)
    assert len(get_all(url)) == 1
    monkeypatch.setattr(fetch, "MAX_REQUEST_BYTES", 2399)
    with pytest.raises(RequestError, match="together larger than"):
        get_all(url)
    limit(monkeypatch, "video", 2300)
    with pytest.raises(RequestError, match="the video is larger than"):
        get_all(url)
    limit(monkeypatch, "image", 500)
    limit(monkeypatch, "video", 9000)
    with pytest.raises(RequestError, match=r"\[0\]: the image is larger than"):
        get_all(url)


def test_data_url_size(monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, "image", 1 << 20)
    text = base64.b64encode(bytes((1 << 20) + 64)).decode()
    refused(f"data:image/png;base64,{text}", "larger than 1 MiB")


@pytest.mark.parametrize("text", ["%41" * 400_000, "A A " * 300_000, "AAAA\r\n" * 200_000])
def test_escapes_and_spaces_cost_no_memory(text: str) -> None:
    """Taken apart piece by piece, a megabyte of them would be sixty."""
    tracemalloc.start()
    try:
        get(f"data:;base64,{text}")
    except RequestError as error:
        assert "base64" in error.message
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * len(text)


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
    refused(url, "is not a data:, http:, https: or file: URL")


# ------------------------------------------------------------------------------------------------- http:


async def fetched(page: Page, path: str = "/") -> bytes:
    """What comes of a page on a real server."""
    async with serving({path: page}) as web:
        fetcher = Fetcher(POOL, HERE)
        try:
            return await fetcher.fetch(f"http://127.0.0.1:{web.port}{path}", "image", WHERE)
        finally:
            await fetcher.aclose()


async def test_http() -> None:
    assert await fetched(ok(b"cat")) == b"cat"


@pytest.mark.parametrize("around", ["{}\n", " {}", "\r\n{}\t\n"])
async def test_space_around_a_url(around: str) -> None:
    """A line of a file, with its end."""
    async with serving({"/cat.png": ok(b"cat")}) as web:
        fetcher = Fetcher(POOL, HERE)
        url = around.format(f"http://127.0.0.1:{web.port}/cat.png")
        assert await fetcher.fetch(url, "image", WHERE) == b"cat"
        with pytest.raises(RequestError, match="cannot be fetched"):
            await fetcher.fetch(url.replace("cat", "c\nat"), "image", WHERE)
        await fetcher.aclose()
        assert web.paths == ["/cat.png"]


async def test_loopback_is_refused_unless_allowed() -> None:
    async with serving({"/": ok(b"secret")}) as web:
        fetcher = Fetcher(POOL)
        with pytest.raises(RequestError, match="may not be fetched: .*--allowed-media-networks") as caught:
            await fetcher.fetch(f"http://127.0.0.1:{web.port}/", "image", WHERE)
        check(caught.value)
        assert not web.requests


@pytest.mark.parametrize("url", ["http://", "http://[::1", "http:///nohost", "http://" + "a" * 10**6])
def test_bad_addresses(url: str) -> None:
    refused(url, "cannot be fetched|may not be fetched")


def test_passwords_are_not_shown() -> None:
    with pytest.raises(RequestError) as caught:
        get("http://me:secret@127.0.0.1/x?q=1")
    assert "http://…@127.0.0.1/x?q=1 may not be fetched" in caught.value.message
    assert "secret" not in caught.value.message


async def test_size(monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, "image", 1 << 20)
    with pytest.raises(RequestError, match="larger than 1 MiB") as caught:
        await fetched(endless)
    check(caught.value)


async def test_slow_body_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit holds for the whole fetch: a drop at a time does not stretch it."""
    monkeypatch.setenv("VLLM_IMAGE_FETCH_TIMEOUT", "0.3")
    with pytest.raises(RequestError, match=r"within 0\.3 seconds \(VLLM_IMAGE_FETCH_TIMEOUT\)") as caught:
        await fetched(dripping)
    check(caught.value)


async def test_slow_names_time_out(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(host: str, port: int) -> list[str]:
        await asyncio.sleep(600)
        return []

    monkeypatch.setenv("VLLM_VIDEO_FETCH_TIMEOUT", "0.2")
    fetcher = Fetcher(POOL, HERE, never)
    with pytest.raises(RequestError, match="VLLM_VIDEO_FETCH_TIMEOUT"):
        await fetcher.fetch("http://slow.example/", "video", WHERE)
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
    (folder / "loop").symlink_to(folder / "loop")
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket"))
    return folder


def policy(root: Path) -> FetchPolicy:
    return FetchPolicy.from_flags(str(root))


def test_files_under_the_allowed_folder(root: Path) -> None:
    assert get(f"file://{root}/a%20cat.png", policy(root)) == b"cat"
    assert get(f"file://localhost{root}/deep/../a cat.png", policy(root)) == b"cat"
    assert get(f"file:{root}/inside", policy(root)) == b"cat"
    assert get(f"file://{root}/a%20cat.png\n", policy(root)) == b"cat"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/../secret", "not under"),
        ("/%2e%2e/secret", "not under"),
        ("/deep/../../secret", "not under"),
        ("/link", "not under"),
        ("-other/x", "not under"),
        ("/%2e%2e%2fsecret", "not under"),
        ("/..%5csecret", "no such file"),
        ("//../secret", "not under"),
        ("/none.png", "no such file"),
        ("/deep", "cannot be read|regular file"),
        ("", "cannot be read|regular file"),
        ("/pipe", "regular file"),
        ("/socket", "cannot be read"),
        ("/loop", "not the path of a file|cannot be read"),
        ("/a%00b", "not the path of a file"),
        ("/" + "x" * 5000, "cannot be read"),
        ("/%ff%fe", "no such file"),
        ("/unreadable", "cannot be read|no such file"),
    ],
)
def test_files_that_are_refused(root: Path, path: str, message: str) -> None:
    refused(f"file://{root}{path}", message, policy(root))


def test_file_urls_need_a_folder_and_no_host(root: Path) -> None:
    refused(f"file://{root}/a%20cat.png", "--allowed-local-media-path")
    refused(f"file://server{root}/a%20cat.png", "not a host", policy(root))
    with pytest.raises(ConfigError, match="not a folder"):
        policy(root / "a cat.png")


@pytest.mark.parametrize(("name", "target"), [("deep", "media-other"), ("a cat.png", "secret")])
def test_a_link_put_in_the_way_after_the_check(
    root: Path, monkeypatch: pytest.MonkeyPatch, name: str, target: str
) -> None:
    """Between looking where a path leads and opening it, somebody may swap a folder or a file for a link."""
    (root / "deep" / "x").write_bytes(b"inside")
    allowed = policy(root)
    original = Path.resolve

    def resolve_then_swap(self: Path, strict: bool = False) -> Path:
        result = original(self, strict)
        (root / name).rename(root / "moved")
        (root / name).symlink_to(root.parent / target)
        return result

    monkeypatch.setattr(Path, "resolve", resolve_then_swap)
    refused(f"file://{root}/{name}{'/x' if name == 'deep' else ''}", "cannot be read", allowed)
    assert (root / name).is_symlink()


def test_errors_do_not_tell_where_links_lead(root: Path) -> None:
    (root / "away").symlink_to("/root/somewhere/else")
    with pytest.raises(RequestError) as caught:
        get(f"file://{root}/away", policy(root))
    assert "somewhere" not in caught.value.message


def test_file_size(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, "image", 2)
    refused(f"file://{root}/a%20cat.png", "larger", policy(root))
