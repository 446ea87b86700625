"""What is sent again is decoded once, within its bounds and for its tenant alone."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from tests import tiny
from tests.media.decode.test_orientation import WRITERS
from tests.media.samples import LIMITS, clip, data_url, scaled_to
from trifocal.config.engine import EngineArgs, resolve
from trifocal.errors import RequestError
from trifocal.media.cache import MediaCache
from trifocal.media.decoding import Decoding, Opened
from trifocal.media.media import FrameSample
from trifocal.media.plan import ItemPlan
from trifocal.media.reader import MediaReader
from trifocal.prompt.builder import PromptBuilder

WHERE = "messages[0]"


def png(seed: int, size: tuple[int, int] = (40, 30)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry a job of a decoder process."""
    done: list[str] = []
    run = Decoding.run

    def counted(self: Decoding, *job: Any) -> Any:
        done.append("job")
        return run(self, *job)

    monkeypatch.setattr(Decoding, "run", counted)
    return done


@pytest.fixture
def reader() -> Iterator[MediaReader]:
    with closing(MediaReader(LIMITS, 1, MediaCache(1 << 20))) as made:
        yield made


def pixels(reader: MediaReader, data: bytes, **options: Any) -> np.ndarray:
    return reader.load(reader.open("image", data, WHERE, **options)).pixels


def test_a_picture_that_is_sent_again_is_not_decoded_again(reader: MediaReader, jobs: list[str]) -> None:
    first = pixels(reader, png(1))
    assert len(jobs) == 2  # header and pixels
    again = pixels(reader, png(1))
    assert len(jobs) == 2 and np.array_equal(first, again)
    with pytest.raises(ValueError, match="read-only"):
        again[0] = 0
    other = pixels(reader, png(2))
    assert len(jobs) == 4 and not np.array_equal(first, other)


def test_each_size_has_its_own_pixels(reader: MediaReader, jobs: list[str]) -> None:
    opened = reader.open("image", png(1), WHERE)
    small = reader.load(opened, planner=scaled_to(15, 20)).pixels
    assert small.shape == (15, 20, 3) and reader.load(opened).pixels.shape == (30, 40, 3)
    assert reader.load(opened, planner=scaled_to(15, 20)).pixels is small
    assert len(jobs) == 3


def test_a_picture_that_only_its_pixels_turn_is_planned_anew_once(reader: MediaReader, jobs: list[str]) -> None:
    """The header of a PNG does not tell of EXIF data in a text; after the first decoding it is known."""
    noisy = np.random.default_rng(1).integers(0, 256, (30, 40, 3), np.uint8)
    data, planned = WRITERS["PNG, as text"](noisy, 6), []

    def planner(opened: Opened) -> ItemPlan:
        planned.append(opened.size)
        return scaled_to(opened.size[1] // 2, 5)(opened)

    for num_jobs in (3, 3):  # header, pixels that do not suit the plan, pixels
        loaded = reader.load(reader.open("image", data, WHERE), planner=planner)
        assert loaded.pixels.shape == (20, 5, 3) and loaded.plan.size == (40, 30)
        assert len(jobs) == num_jobs
    assert planned == [(1, 30, 40), (1, 40, 30), (1, 40, 30)]


def test_tenants_share_nothing(reader: MediaReader, jobs: list[str]) -> None:
    found = [pixels(reader, png(1), salt=salt) for salt in (None, "a", "b")]
    assert len(jobs) == 6
    found += [pixels(reader, png(1), salt=salt) for salt in ("b", "a", None)]
    assert len(jobs) == 6 and all(np.array_equal(one, found[0]) for one in found)
    names = {MediaCache.name(b"bc", "a"), MediaCache.name(b"c", "ab"), MediaCache.name(b"abc", None)}
    assert len(names) == 3


def test_a_clip_is_kept_by_its_frames(reader: MediaReader, jobs: list[str]) -> None:
    data = clip(12, 6)

    def frames(*indices: int, fps: float = 1.0) -> np.ndarray:
        opened = reader.open("video", data, WHERE, sampler=lambda *_: FrameSample(np.array(indices), fps))
        loaded = reader.load(opened)
        assert loaded.fps == fps
        return loaded.pixels

    first = frames(0, 3)
    assert len(jobs) == 2
    assert np.array_equal(frames(0, 3), first) and len(jobs) == 2
    assert not np.array_equal(frames(0, 11), first) and len(jobs) == 3
    assert np.array_equal(frames(0, 3, fps=2.0), first) and len(jobs) == 4


def test_the_same_file_as_picture_and_as_clip(reader: MediaReader) -> None:
    """A moving GIF is a picture to who asks for one."""
    file = io.BytesIO()
    frames = [PIL.Image.new("RGB", (40, 30), color) for color in ("red", "blue")]
    frames[0].save(file, "gif", save_all=True, append_images=frames[1:], duration=100)
    for _ in range(2):
        opened = reader.open("video", file.getvalue(), WHERE, sampler=lambda *_: FrameSample(np.array([0, 1]), 1.0))
        assert reader.load(opened).pixels.shape == (2, 30, 40, 3)
        assert pixels(reader, file.getvalue()).shape == (30, 40, 3)


def test_a_broken_file_fails_each_time(reader: MediaReader) -> None:
    for _ in range(2):
        with pytest.raises(RequestError, match=r"messages\[0\]"):
            pixels(reader, png(1)[:200])


def test_least_recently_used_go_first() -> None:
    cache = MediaCache(5000)
    for name in "abc":
        cache.add(name, name, 1000)
    assert cache.get("a", str) == "a"
    cache.add("d", "d", 1000)  # an entry costs some bytes itself: there is room for three
    assert [cache.get(name, str) for name in "abcd"] == ["a", None, "c", "d"]
    assert 3000 < cache.num_bytes <= 5000
    cache.add("too large", "x", 6000)
    assert cache.get("too large", str) is None and cache.get("a", str) == "a"
    for _ in range(9):
        cache.add("a", "a", 2000)
    assert 4000 < cache.num_bytes <= 5000 and cache.get("d", str) == "d"


@pytest.mark.parametrize(
    ("flags", "num_jobs"),
    [({}, 2), ({"mm_processor_cache_gb": 0.0}, 4), ({"disable_mm_preprocessor_cache": True}, 4)],
    ids=str,
)
async def test_flags_reach_the_cache(tmp_path: Path, jobs: list[str], flags: dict[str, Any], num_jobs: int) -> None:
    config = resolve(EngineArgs(model=str(tiny.write_checkpoint(tmp_path)), **flags))
    with closing(PromptBuilder(config)) as builder:
        content = [{"type": "image_url", "image_url": {"url": data_url(png(1, (56, 56)))}}]
        for _ in range(2):
            await builder.chat([{"role": "user", "content": content}])
    assert len(jobs) == num_jobs


async def test_options_of_parts_are_in_the_keys(tmp_path: Path, jobs: list[str]) -> None:
    """Pixels of another size and other frames are not those that are kept; what is asked again is."""
    config = resolve(EngineArgs(model=str(tiny.write_checkpoint(tmp_path))))
    image = {"type": "image_url", "image_url": {"url": data_url(png(1, (168, 112)))}}
    video = {"type": "video_url", "video_url": {"url": data_url(clip(12, 6), "video/mp4")}}
    frames = ",".join(data_url(png(seed, (56, 56))).partition(",")[2] for seed in range(4))
    listed = {"type": "video_url", "video_url": {"url": f"data:video/jpeg;base64,{frames}"}}
    square = {"resized_height": 84, "resized_width": 84}
    asked = [
        (image, {}, 2), (image, {"max_pixels": 6 * 784}, 1), (image, square, 1),
        (video, {"nframes": 4}, 2), (video, {"nframes": 6}, 1), (video, {"fps": 1.0, "min_frames": 2}, 1),
        (video, {"nframes": 4, "max_pixels": 784}, 1),
        (listed, {}, 4 + 4), (listed, {"fps": 1.0}, 0), (listed, square, 4), (listed, {"nframes": 2}, 0),
    ]  # fmt: skip
    names: list[list[bytes]] = [[], []]
    with closing(PromptBuilder(config)) as builder:
        for again in (False, True):
            for part, options, num_jobs in asked:
                jobs.clear()
                prompt = await builder.chat([{"role": "user", "content": [{**part, **options}]}])
                names[again].append(prompt.media[0].content_hash)
                assert len(jobs) == (0 if again else num_jobs), (options, again)
    assert names[0] == names[1] and len(set(names[0])) == len(asked)


def test_none_is_kept_without_room(jobs: list[str]) -> None:
    with closing(MediaReader(LIMITS, 1)) as reader:
        for _ in range(2):
            pixels(reader, png(1))
    assert len(jobs) == 4
