"""A small client of the OpenAI API, for the commands that talk to a server: `chat`, `demo` and `bench`."""

from __future__ import annotations

import base64
import json
from collections.abc import Generator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from trifocal.errors import ConfigError, TrifocalError

_TIMEOUT = httpx.Timeout(600.0, connect=10.0)
_SIGNATURES = (  # (offset, bytes at the start of a file, media type)
    (0, b"\x89PNG\r\n\x1a\n", "image/png"),
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (0, b"GIF8", "image/gif"),
    (8, b"WEBP", "image/webp"),
    (0, b"BM", "image/bmp"),
    (0, b"II*\0", "image/tiff"),
    (0, b"MM\0*", "image/tiff"),
    (4, b"ftyp", "video/mp4"),
    (0, b"\x1aE\xdf\xa3", "video/webm"),
    (8, b"AVI ", "video/x-msvideo"),
)


class ServerError(TrifocalError):
    """The server refused a request or went away; the message is for the user."""


def media_part(path: str | Path) -> dict[str, Any]:
    """The file as a part of a chat message: `image_url` or `video_url` with a data URL, typed by its content."""
    try:
        data = Path(path).expanduser().read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    return bytes_part(data, name=str(path))


def bytes_part(data: bytes, name: str = "media") -> dict[str, Any]:
    """As `media_part`, of bytes in hand; `name` is for the error message."""
    mime = next((mime for at, magic, mime in _SIGNATURES if data[at : at + len(magic)] == magic), None)
    if mime is None:
        raise ConfigError(f"{name} is neither a picture nor a video, judging by its name")
    kind = f"{mime.split('/')[0]}_url"
    return {"type": kind, kind: {"url": f"data:{mime};base64,{base64.b64encode(data).decode()}"}}


def normalise_url(url: str) -> str:
    """`host:port`, `http://host:port` and `http://host:port/v1/` all name the same server."""
    url = url if "://" in url else f"http://{url}"
    return url.rstrip("/").removesuffix("/v1")


def is_loopback(url: str) -> bool:
    """Whether a URL names this machine: then no proxy of the environment is asked."""
    return urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")


class Client:
    """Blocking requests to one server. Raises `ServerError` with the server's own message where there is one."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self.url = normalise_url(url)
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.Client(
            base_url=self.url, headers=headers, timeout=_TIMEOUT, trust_env=not is_loopback(self.url)
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def is_ready(self) -> bool:
        """Whether the server answers and its engine is well."""
        try:
            return self._http.get("/health", timeout=5.0).status_code == 200
        except httpx.HTTPError:
            return False

    def first_model(self) -> str:
        """The first name that the server goes by."""
        try:
            response = self._http.get("/v1/models")
        except httpx.HTTPError as error:
            raise ServerError(f"no server at {self.url}: {error}") from None
        _raise_for_status(response)
        return str(response.json()["data"][0]["id"])

    def stream_chat(self, model: str, messages: list[dict[str, Any]], **fields: Any) -> Generator[str]:
        """Yield the answer's text as it comes; `fields` are further fields of the request."""
        body = {"model": model, "messages": messages, "stream": True, **fields}
        try:
            with self._http.stream("POST", "/v1/chat/completions", json=body) as response:
                if response.status_code != 200:
                    response.read()
                _raise_for_status(response)
                for event in map(parse_event, response.iter_lines()):
                    if event and event.get("choices"):
                        yield event["choices"][0]["delta"].get("content") or ""
        except httpx.HTTPError as error:
            raise ServerError(f"{self.url} did not answer: {error!r}") from None


def parse_event(line: str) -> dict[str, Any] | None:
    """The JSON of one line of a server-sent event stream, `None` for other lines and `[DONE]`. Raises `ServerError`."""
    if not line.startswith("data:") or line[5:].strip() == "[DONE]":
        return None
    event: dict[str, Any] = json.loads(line[5:])
    if "error" in event:
        raise ServerError(_message(event, "error in the stream"))
    return event


def _raise_for_status(response: httpx.Response) -> None:
    if response.status_code != 200:
        try:
            body = response.json()
        except ValueError:
            body = {}
        raise ServerError(f"{response.status_code}: {_message(body, response.text[:300])}")


def _message(body: Any, otherwise: str) -> str:
    error = body.get("error") if isinstance(body, dict) else None
    return str(error.get("message", error)) if isinstance(error, dict) else str(error or otherwise)
