"""The bytes behind a media URL: data:, http(s):, and file: under one allowed folder. Nothing else is opened."""

from __future__ import annotations

import asyncio
import binascii
import re
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Executor
from typing import Any, TypeVar

from trifocal.config.media import FetchConfig
from trifocal.errors import RequestError
from trifocal.media.fetch.download import Downloader, DownloadError, Resolver, TooLargeError
from trifocal.media.fetch.local_file import FileRefusedError, FileTooLargeError, read_file
from trifocal.media.fetch.policy import FetchPolicy
from trifocal.media.given import is_with_metadata
from trifocal.media.media import MediaRef
from trifocal.media.modalities import MODALITIES
from trifocal.media.watch import watching
from trifocal.types import Modality

T = TypeVar("T")
MAX_REQUEST_BYTES = 1 << 30
MAX_FRAME_FILES = 8192  # of one clip that is a list of pictures
MAX_FRAME_LINKS = 999  # as many as pictures in a prompt: nobody's server is to be asked for thousands
_FRAMES_HEAD = "data:video/jpeg;base64"
_FETCHES_AT_ONCE = 8  # of one request
_MAX_SHOWN = 128  # characters of a URL in an error
_PASSWORD = re.compile(r"//[^/?#]*@")
# The characters that base64 and its line ends need; decoding any %xx there is could take sixty times the memory.
_ESCAPES = {b"%2B": b"+", b"%2F": b"/", b"%3D": b"=", b"%0A": b"", b"%0D": b"", b"%20": b""}
_SPACES = b" \t\r\n\f\v"
_STANDARD = bytes.maketrans(b"-_", b"+/")  # the URL-safe alphabet is the standard one but for these two
_BASE64_HEAD = re.compile(r";\s*base64\s*\Z", re.IGNORECASE)


class Fetcher:
    """Fetches media for one event loop; `executor` runs what would block it (base64, disk).

    Without a `config` the environment is read.
    """

    def __init__(
        self,
        executor: Executor,
        policy: FetchPolicy | None = None,
        resolver: Resolver | None = None,
        config: FetchConfig | None = None,
    ) -> None:
        self._executor = executor
        self._policy = policy or FetchPolicy()
        self._config = config or FetchConfig()
        self._downloader = Downloader(self._policy, resolver, allows_redirects=self._config.allows_redirects)

    async def fetch(self, url: str, modality: Modality, where: str) -> bytes:
        """The bytes of `url`. Raises `RequestError` that begins with `where`; cancelling it closes the connection."""
        url = url.strip()  # a line read from a file, as in browsers
        scheme = url[:16].partition(":")[0].lower()
        if scheme == "data":
            return _counted(await self._off_loop(_decode_data_url, url, modality, where))
        if scheme in ("http", "https"):
            return await self._download(url, modality, where)
        if scheme == "file":
            return _counted(await self._off_loop(self._read_file, url, modality, where))
        raise _refusal(where, f"{_shown(url)!r} is not a data:, http:, https: or file: URL")

    async def fetch_frames(self, url: str, modality: Modality, where: str) -> list[bytes]:
        """The files of `data:video/jpeg;base64,<frame>,<frame>,…`: pictures, as in vLLM, whatever their format."""
        frames = await asyncio.get_running_loop().run_in_executor(self._executor, _decode_frames, url, modality, where)
        return [_counted(frame) for frame in frames]

    async def aclose(self) -> None:
        await self._downloader.aclose()

    async def _off_loop(self, function: Callable[..., bytes], *args: object) -> bytes:
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *args)

    async def _download(self, url: str, modality: Modality, where: str) -> bytes:
        timeout: float = getattr(self._config, MODALITIES[modality].fetch_timeout)
        try:
            async with asyncio.timeout(timeout):  # for all of it: neither a slow name nor a slow body stretches it
                return await self._downloader.get(url, MODALITIES[modality].max_bytes)
        except TimeoutError:
            message = f"did not arrive within {timeout:g} seconds (VLLM_{modality.upper()}_FETCH_TIMEOUT)"
        except TooLargeError:
            raise _too_large(where, modality) from None
        except DownloadError as error:
            message = str(error)
        raise _refusal(where, f"{_shown(url)} {message}")

    def _read_file(self, url: str, modality: Modality, where: str) -> bytes:
        root = self._policy.local_root
        if root is None:
            raise _refusal(where, "file: URLs are refused unless the server is started with --allowed-local-media-path")
        try:
            return read_file(url, root, MODALITIES[modality].max_bytes)
        except FileTooLargeError:
            raise _too_large(where, modality) from None
        except FileRefusedError as error:
            raise _refusal(where, str(error)) from None


async def fetch_all(refs: Sequence[MediaRef], fetcher: Fetcher) -> list[Any]:
    """Bytes of what is given by URL, the rest as it is; bounded in number at once and in bytes altogether."""
    gate = asyncio.Semaphore(_FETCHES_AT_ONCE)
    num_bytes = 0

    def counted(data: bytes) -> bytes:
        nonlocal num_bytes
        num_bytes += len(data)
        if num_bytes > MAX_REQUEST_BYTES:
            message = f"the media of one request are together larger than {MAX_REQUEST_BYTES >> 20} MiB"
            raise RequestError(message, param="messages")
        return data

    async def fetch(source: Any, modality: Modality, where: str) -> Any:
        frames_are = MODALITIES[modality].frames
        if frames_are and isinstance(source, list):
            _check_frame_count(len(source), where)
            num_links = sum(isinstance(frame, str) and frame[:4].lower() == "http" for frame in source)
            if num_links > MAX_FRAME_LINKS:
                raise _refusal(where, f"{num_links} frames are given by URL, but at most {MAX_FRAME_LINKS} are fetched")
            frames = enumerate(source)
            return await run_all([fetch(frame, frames_are, f"{where}[{index}]") for index, frame in frames])
        if is_with_metadata(source):
            return await fetch(source[0], modality, where), source[1]
        if not isinstance(source, str):
            return source
        async with gate:
            if frames_are and _is_frame_list(source):
                return [counted(frame) for frame in await fetcher.fetch_frames(source, modality, where)]
            return counted(await fetcher.fetch(source, modality, where))

    return await run_all([fetch(ref.source, ref.modality, ref.where) for ref in refs])


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
    url = _PASSWORD.sub("//…@", url[: 8 * _MAX_SHOWN], count=1)
    return url if len(url) <= _MAX_SHOWN else f"{url[:_MAX_SHOWN]}…"


def _refusal(where: str, message: str) -> RequestError:
    return RequestError(f"{where}: {message}", param="messages")


def _too_large(where: str, modality: Modality) -> RequestError:
    return _refusal(where, f"the {modality} is larger than {MODALITIES[modality].max_bytes >> 20} MiB")


def _decode_data_url(url: str, modality: Modality, where: str) -> bytes:
    head, comma, payload = url.partition(",")
    if not comma:
        raise _refusal(where, "the data: URL has no comma between its head and its data")
    if _BASE64_HEAD.search(head) is None:
        raise _refusal(where, "the data: URL must be base64 (data:image/jpeg;base64,…)")
    if len(payload) > MODALITIES[modality].max_bytes * 4 // 3 + 4:
        raise _too_large(where, modality)
    try:
        return binascii.a2b_base64(_plain(payload.encode("ascii")), strict_mode=True)
    except ValueError as error:  # binascii.Error and UnicodeEncodeError are both
        reason: object = error if isinstance(error, binascii.Error) else "not ASCII"
        if "," in payload:
            reason = f"it has a comma; a list of frames must begin with {_FRAMES_HEAD}, and be a clip"
        raise _refusal(where, f"the data: URL is not valid base64 ({reason})") from None


def _is_frame_list(url: str) -> bool:
    head, comma, _ = url[:64].lstrip().partition(",")
    return bool(comma) and head.replace(" ", "").lower() == _FRAMES_HEAD


def _decode_frames(url: str, modality: Modality, where: str) -> list[bytes]:
    frames_are = MODALITIES[modality].frames
    assert frames_are is not None
    num_frames, start = url.count(","), url.index(",") + 1
    _check_frame_count(num_frames, where)
    if len(url) - start > MODALITIES[modality].max_bytes * 4 // 3 + 5 * num_frames:  # a comma and the rounding of each
        raise _too_large(where, modality)
    frames = []
    for index in range(num_frames):  # one by one: no second copy of all of them
        end = url.find(",", start)
        frame = url[start : len(url) if end < 0 else end]
        frames.append(_decode_data_url(f"data:image/jpeg;base64,{frame}", frames_are, f"{where}[{index}]"))
        start = end + 1
    return frames


def _check_frame_count(num_frames: int, where: str) -> None:
    if num_frames > MAX_FRAME_FILES:
        raise _refusal(where, f"the clip is a list of {num_frames} frames, but at most {MAX_FRAME_FILES} are allowed")


def _plain(payload: bytes) -> bytes:
    """`payload` in the standard alphabet, padded, without the line ends of MIME and the escapes of URL encoders."""
    if b"%" in payload:
        for escape, character in _ESCAPES.items():
            payload = payload.replace(escape, character).replace(escape.lower(), character)
    payload = payload.translate(_STANDARD, _SPACES)
    if len(payload) % 4:  # the padding tells nothing that the length does not, and many leave it away
        payload = payload.rstrip(b"=")
        payload += b"=" * (-len(payload) % 4)
    return payload
