"""How much the media of one request may be altogether, told before any of it is decoded."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from tests import tiny
from tests.media.samples import LIMITS, clip, data_url, encoded, noise
from trifocal.config.engine import EngineArgs, EngineConfig, resolve
from trifocal.errors import ConfigError, RequestError
from trifocal.media.limits import MAX_DECODED_BYTES
from trifocal.media.plan import ItemPlan
from trifocal.media.reader import MediaReader
from trifocal.prompt.builder import PromptBuilder

PNG = encoded(PIL.Image.fromarray(noise(100, 200)), "PNG")
MP4 = clip(20, 10, size=(96, 64))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_checkpoint(tmp_path_factory.mktemp("limits") / "model")


Resolve = Callable[..., EngineConfig]


@pytest.fixture(scope="module")
def resolved(folder: Path) -> Resolve:
    return lambda **flags: resolve(EngineArgs(model=str(folder), device="cpu", **flags))


def no_pixels(*_: Any) -> None:
    raise AssertionError("something was decoded")


def ask(*parts: tuple[str, bytes]) -> list[dict[str, Any]]:
    content = [{"type": kind, kind: {"url": data_url(data)}} for kind, data in parts]
    return [{"role": "user", "content": content}]


async def test_pixels_of_a_request(resolved: Resolve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Headers are added up: pictures as they are, clips by their chosen frames (four at this rate)."""
    frames = 4 * 96 * 64
    messages = ask(("image_url", PNG), ("image_url", PNG), ("video_url", MP4))
    with closing(PromptBuilder(resolved(max_request_pixels=2 * 20_000 + frames))) as builder:
        assert len((await builder.chat(messages)).media) == 3
    with closing(PromptBuilder(resolved(max_request_pixels=2 * 20_000 + frames - 1))) as builder:
        monkeypatch.setattr(MediaReader, "load", no_pixels)
        with pytest.raises(
            RequestError, match=r"one request are 0.064576 megapixels, but at most 0.064575 are.*--max-request-pixels"
        ) as caught:
            await builder.chat(messages)
        assert (caught.value.param, caught.value.status) == ("messages", 400)
        with pytest.raises(RequestError, match="--max-request-pixels"):
            builder.build("<|image_pad|>" * 4, {"image": [np.zeros((100, 200, 3), np.uint8)] * 4})


async def test_pixels_of_frames_that_are_files(resolved: Resolve, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of pictures counts like the clip that it is, and `num_frames` is proposed where fewer would be allowed."""
    frames = ",".join([data_url(PNG).partition(",")[2]] * 6)
    content = [{"type": "video_url", "video_url": {"url": f"data:video/jpeg;base64,{frames}"}}]
    messages = [{"role": "user", "content": content}]
    with closing(PromptBuilder(resolved(max_request_pixels=6 * 20_000))) as builder:
        assert len((await builder.chat(messages)).media) == 1
    with closing(PromptBuilder(resolved(max_request_pixels=6 * 20_000 - 1))) as builder:
        with monkeypatch.context() as patch:
            patch.setattr(MediaReader, "load", no_pixels)
            with pytest.raises(RequestError, match=r"--max-request-pixels.* would fit with num_frames 5 \(") as caught:
                await builder.chat(messages)
        assert (caught.value.param, caught.value.status) == ("messages", 400)
        assert (await builder.chat(messages, mm_processor_kwargs={"num_frames": 5})).media


async def test_flags_reach_the_reader(resolved: Resolve) -> None:
    message = r"content\[0\].image_url: .*--max-image-pixels"
    with (
        closing(PromptBuilder(resolved(max_image_pixels=19_999))) as builder,
        pytest.raises(RequestError, match=message),
    ):
        await builder.chat(ask(("image_url", PNG)))
    with closing(PromptBuilder(resolved(max_video_frames=2))) as builder:
        with pytest.raises(RequestError, match=r"content\[0\].video_url: 4 frames .*--max-video-frames"):
            await builder.chat(ask(("video_url", MP4)))
        with pytest.raises(RequestError, match="--max-video-frames"):
            await builder.chat(ask(("video_url", MP4)), mm_processor_kwargs={"num_frames": 6})
        assert (await builder.chat(ask(("video_url", MP4)), mm_processor_kwargs={"num_frames": 2})).media


def test_memory_of_a_request() -> None:
    """Many pictures that are small to decode by themselves are refused where they would fill the memory together."""

    def plan(size: tuple[int, int], decoded: tuple[int, int]) -> ItemPlan:
        return ItemPlan("image", size, decoded, decoded, 0, 0)

    LIMITS.check_request([plan((4000, 3000), (448, 336))] * 100)
    with pytest.raises(RequestError, match="take 3434 MiB when decoded, but at most 2048"):
        LIMITS.check_request([plan((4000, 3000), (4000, 3000))] * 100)
    side = int((MAX_DECODED_BYTES / 3) ** 0.5)
    generous = replace(LIMITS, max_request_pixels=1 << 60)
    generous.check_request([plan((side, side), (side, side))])
    with pytest.raises(RequestError):
        generous.check_request([plan((side + 1, side + 1), (side + 1, side + 1))])


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("max_image_pixels", 0),
        ("max_request_pixels", -1),
        ("max_video_frames", 0),
        ("image_decode_timeout", 0.0),
        ("video_decode_timeout", float("inf")),
        ("decode_memory_gib", float("nan")),
    ],
)
def test_bad_flags(resolved: Resolve, flag: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"--{flag.replace('_', '-')} must be"):
        resolved(**{flag: value})
