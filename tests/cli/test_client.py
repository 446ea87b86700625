"""The small client behind `chat`, `demo` and `bench`."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from trifocal.cli.client import Client, ServerError, bytes_part, media_part, normalise_url, parse_event
from trifocal.demo.run import NAME, SAMPLES
from trifocal.errors import ConfigError


def test_the_content_decides_the_type_not_the_name(tmp_path: Path) -> None:
    disguised = tmp_path / "picture.mp4"
    disguised.write_bytes((SAMPLES / "circle.png").read_bytes())
    part = media_part(disguised)
    head, _, data = part["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64" and base64.b64decode(data) == disguised.read_bytes()
    assert media_part(SAMPLES / "up.mp4")["type"] == "video_url"


@pytest.mark.parametrize(
    ("data", "mime"),
    [
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "image/webp"),
        (b"RIFF\0\0\0\0AVI LIST", "video/x-msvideo"),
        (b"GIF89a", "image/gif"),
        (b"\x1aE\xdf\xa3", "video/webm"),
    ],
)
def test_signatures(data: bytes, mime: str) -> None:
    part = bytes_part(data)
    assert part[part["type"]]["url"].startswith(f"data:{mime};base64,")


def test_files_that_will_not_do(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ConfigError, match="neither a picture nor a video"):
        media_part(tmp_path / "text")
    with pytest.raises(ConfigError, match="cannot read"):
        media_part(tmp_path / "nothing")


@pytest.mark.parametrize("url", ["host:1", "http://host:1", "http://host:1/", "http://host:1/v1", "host:1/v1/"])
def test_urls(url: str) -> None:
    assert normalise_url(url) == "http://host:1"


def test_events() -> None:
    assert parse_event('data: {"choices": []}') == {"choices": []}
    assert parse_event("data: [DONE]") is parse_event("") is parse_event(": ping") is None
    with pytest.raises(ServerError, match="engine died"):
        parse_event('data: {"error": {"message": "engine died"}}')


def test_against_a_server(demo_server: str) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    with Client(demo_server) as client:
        assert client.is_ready() and client.first_model() == NAME
        assert isinstance("".join(client.stream_chat(NAME, messages, max_tokens=4)), str)
        with pytest.raises(ServerError, match="404: .*nobody"):
            list(client.stream_chat("nobody", messages))
        with pytest.raises(ServerError, match="400: .*temperature"):
            list(client.stream_chat(NAME, messages, temperature=-1))


def test_nobody_there() -> None:
    with Client("127.0.0.1:9") as client:
        assert not client.is_ready()
        with pytest.raises(ServerError, match="no server at"):
            client.first_model()
        with pytest.raises(ServerError, match="did not answer"):
            list(client.stream_chat("x", []))
