"""The bytes behind a media URL: data:, http(s):, and file: under one allowed folder. Nothing else is opened."""

from __future__ import annotations

import asyncio
import binascii
import os
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, unquote_to_bytes, urlsplit

import httpx

from trifocal import envs
from trifocal.multimodal.messages import MediaRef
from trifocal.multimodal.watch import watching
from trifocal.types import ConfigError, Modality, RequestError

T = TypeVar("T")
MAX_BYTES: dict[Modality, int] = {"image": 128 << 20, "video": 512 << 20}
MAX_REQUEST_BYTES = 1 << 30
_FETCHES_AT_ONCE = 8  # of one request
_MAX_REDIRECTS = 5
_MAX_CONNECTIONS = 100
_MAX_SHOWN = 128  # characters of a URL in an error


class Fetcher:
    """Fetches media for one event loop; `executor` runs what would block it (base64, disk).

    The HTTP client, and with it TLS set-up, is made on the first http(s) URL. Environment proxies are honoured.
    """

    def __init__(
        self,
        executor: Executor,
        allowed_local_media_path: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._executor = executor
        self._root = _allowed_root(allowed_local_media_path)
        self._transport = transport
        self._client: httpx.AsyncClient | None = None

    async def fetch(self, url: str, modality: Modality, where: str) -> bytes:
        """The bytes of `url`. Raises `RequestError` that begins with `where`; cancelling it closes the connection."""
        scheme = url[:16].partition(":")[0].strip().lower()
        if scheme == "data":
            return _counted(await self._off_loop(_decode_data_url, url, modality, where))
        if scheme in ("http", "https"):
            return await self._download(url, modality, where)
        if scheme == "file":
            return _counted(await self._off_loop(_read_file, url, self._root, modality, where))
        raise _refusal(where, f"{_shown(url)!r} is no data:, http:, https: or file: URL")

    async def aclose(self) -> None:
        """Close the HTTP client."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def _off_loop(self, function: Callable[..., bytes], *args: object) -> bytes:
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *args)

    async def _download(self, url: str, modality: Modality, where: str) -> bytes:
        timeout = (envs.IMAGE_FETCH_TIMEOUT if modality == "image" else envs.VIDEO_FETCH_TIMEOUT).get()
        variable = f"VLLM_{modality.upper()}_FETCH_TIMEOUT"
        try:
            async with asyncio.timeout(timeout):
                return await self._stream(url, modality, where)
        except (TimeoutError, httpx.TimeoutException):
            message = f"{_shown(url)} did not arrive within {timeout:g} seconds ({variable})"
        except httpx.TooManyRedirects:
            message = f"{_shown(url)} redirects more than {_MAX_REDIRECTS} times"
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, OSError) as error:
            message = f"{_shown(url)} cannot be fetched: {error or type(error).__name__}"
        raise _refusal(where, message)

    async def _stream(self, url: str, modality: Modality, where: str) -> bytes:
        limit = MAX_BYTES[modality]
        body = bytearray()
        async with self._http().stream("GET", url) as response:
            if response.status_code != 200:
                raise _refusal(where, f"{_shown(url)} answered {response.status_code} {response.reason_phrase}")
            async for chunk in response.aiter_bytes():
                body += _counted(chunk)
                if len(body) > limit:
                    raise _too_large(where, modality)
        return bytes(body)

    def _http(self) -> httpx.AsyncClient:
        if self._client is None:
            self._client = httpx.AsyncClient(
                transport=self._transport,
                follow_redirects=True,
                max_redirects=_MAX_REDIRECTS,
                timeout=None,  # one limit for the whole fetch, set by the caller
                limits=httpx.Limits(max_connections=_MAX_CONNECTIONS),
                headers={"User-Agent": "trifocal", "Accept": "*/*"},
            )
        return self._client


async def fetch_all(refs: Sequence[MediaRef], fetcher: Fetcher) -> list[Any]:
    """Bytes of what is given by URL, the rest as it is; bounded in number at once and in bytes altogether."""
    gate = asyncio.Semaphore(_FETCHES_AT_ONCE)
    num_bytes = 0

    async def fetch(ref: MediaRef) -> Any:
        nonlocal num_bytes
        if not isinstance(ref.source, str):
            return ref.source
        async with gate:
            data = await fetcher.fetch(ref.source, ref.modality, ref.where)
        num_bytes += len(data)
        if num_bytes > MAX_REQUEST_BYTES:
            message = f"the media of one request are larger than {MAX_REQUEST_BYTES >> 20} MiB altogether"
            raise RequestError(message, param="messages")
        return data

    return await run_all([fetch(ref) for ref in refs])


async def run_all(coroutines: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Run all at once; the first failure cancels the others and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(coroutine) for coroutine in coroutines]
    except* Exception as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


def _counted(data: bytes) -> bytes:
    watching.get().fetched(len(data))
    return data


def _shown(url: str) -> str:
    return url if len(url) <= _MAX_SHOWN else f"{url[:_MAX_SHOWN]}…"


def _refusal(where: str, message: str) -> RequestError:
    return RequestError(f"{where}: {message}", param="messages")


def _too_large(where: str, modality: Modality) -> RequestError:
    return _refusal(where, f"the {modality} is larger than {MAX_BYTES[modality] >> 20} MiB")


def _decode_data_url(url: str, modality: Modality, where: str) -> bytes:
    head, comma, payload = url.partition(",")
    if not comma:
        raise _refusal(where, "the data: URL has no comma between its head and its data")
    if not head.lower().rstrip().endswith(";base64"):
        raise _refusal(where, "the data: URL must be base64 (data:image/jpeg;base64,…)")
    if len(payload) > MAX_BYTES[modality] * 4 // 3 + 4:
        raise _too_large(where, modality)
    try:
        raw = unquote_to_bytes(payload) if "%" in payload else payload.encode("ascii")
        if any(space in raw for space in (b"\n", b"\r", b" ")):  # MIME encoders wrap their lines
            raw = b"".join(raw.split())
        return binascii.a2b_base64(raw, strict_mode=True)
    except ValueError as error:  # binascii.Error and UnicodeEncodeError are both
        raise _refusal(where, f"the data: URL is not valid base64 ({error})") from None


def _allowed_root(path: str | None) -> Path | None:
    if not path:
        return None
    root = Path(path).expanduser().resolve()
    if not root.is_dir():
        raise ConfigError(f"--allowed-local-media-path {path!r} is not a folder")
    return root


def _read_file(url: str, root: Path | None, modality: Modality, where: str) -> bytes:
    if root is None:
        raise _refusal(where, "file: URLs are refused unless the server is started with --allowed-local-media-path")
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise _refusal(where, f"a file: URL names a path, not a host ({parts.netloc})")
    try:
        path = Path(unquote(parts.path)).resolve()  # symlinks and .. are gone after this
        if not path.is_relative_to(root):
            raise _refusal(where, "the file is not under --allowed-local-media-path")
        if not path.is_file():  # a pipe or a device would block a thread for good
            raise _refusal(where, f"there is no file {parts.path}")
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size > MAX_BYTES[modality]:
                raise _too_large(where, modality)
            return file.read(MAX_BYTES[modality])
    except (OSError, ValueError) as error:
        raise _refusal(where, f"the file cannot be read: {error}") from None
