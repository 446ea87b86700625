"""Clips whose frames tell their numbers: what is asked for is what comes, and broken ones are refused by name."""

from __future__ import annotations

import io
import struct
from contextlib import closing
from dataclasses import replace
from typing import Any

import av
import msgspec
import numpy as np
import PIL.Image
import pytest

from tests.media.samples import LIMITS, clip, encoded, frame_numbers, noise, numbered, scaled_to
from trifocal.errors import RequestError
from trifocal.media.decode import video_file
from trifocal.media.decode.video import FrameFacts, OpenedVideo, Sampler
from trifocal.media.decode.video_file import VideoFile, VideoIndex
from trifocal.media.image_reader import ImageReader
from trifocal.media.media import FrameSample, Image, Video
from trifocal.media.reader import MediaReader

WHERE = "messages[0].content[0].video_url"


def pick(*indices: int, fps: float = 2.0) -> Sampler:
    """A sampler that wants these frames."""
    return lambda _total, _fps: FrameSample(np.array(indices, np.int64), fps)


class Reading:
    """Short names for what the tests do most."""

    def __init__(self, reader: MediaReader) -> None:
        self.reader = reader

    def opened(self, source: Any, *indices: int, **options: Any) -> OpenedVideo:
        """Open, wanting these frames."""
        return self.reader.open("video", source, WHERE, sampler=pick(*indices), **options)

    def load(self, source: Any, *indices: int, **options: Any) -> Video:
        """Open and decode these frames."""
        return self.reader.load(self.opened(source, *indices, **options))


@pytest.fixture
def reading(reader: MediaReader) -> Reading:
    return Reading(reader)


@pytest.mark.parametrize(
    ("container", "codec"),
    [("mp4", "libx264"), ("mp4", "mpeg4"), ("matroska", "libx264"), ("webm", "libvpx"), ("avi", "mpeg4"),
     ("mpegts", "libx264"), ("h264", "libx264"), ("flv", "libx264")],
)  # fmt: skip
def test_chosen_frames_of_every_container(reading: Reading, container: str, codec: str) -> None:
    item = reading.opened(clip(40, 10, container=container, codec=codec), 0, 7, 13, 22, 39)
    assert (item.header.num_frames, item.header.height, item.header.width) == (40, 48, 64)
    assert item.header.fps == pytest.approx(10, rel=0.01) or container == "h264"  # a raw stream has no clock
    loaded = reading.reader.load(item)
    assert frame_numbers(loaded.frames) == [0, 7, 13, 22, 39]
    assert loaded.fps == 2.0 and loaded.frames.dtype == np.uint8


def test_seeking_finds_the_same_frames_as_decoding_all(reading: Reading) -> None:
    """Far frames of a long clip are reached by key frames; B-frames lie around them."""
    data = clip(250, 25, gop=30)
    wanted = [0, 3, 100, 101, 130, 149, 150, 151, 209, 240, 249]
    loaded = reading.load(data, *wanted)
    assert frame_numbers(loaded.frames) == wanted
    assert frame_numbers(reading.load(data, *range(250)).frames) == list(range(250))


def test_only_what_is_needed_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    converted = []
    original = VideoFile._picture
    monkeypatch.setattr(VideoFile, "_picture", lambda self, frame: converted.append(1) or original(self, frame))
    list(VideoFile(clip(40), WHERE, 4096).pictures(np.array([5, 30])))
    assert len(converted) == 2


def test_sampler_sees_count_and_rate(reading: Reading) -> None:
    seen = []

    def sampler(total: int, fps: float) -> FrameSample:
        seen.append((total, fps))
        return FrameSample(np.array([0]), 1.0)

    reading.reader.open("video", clip(33, 15), WHERE, sampler=sampler)
    assert seen == [(33, 15.0)]


def test_scaling_while_decoding(reading: Reading) -> None:
    data = clip(10, size=(64, 48))
    whole = reading.load(data, 1, 8).frames
    scaled = reading.reader.load(reading.opened(data, 1, 8), planner=scaled_to(24, 32)).pixels
    expected = [PIL.Image.fromarray(frame).resize((32, 24), PIL.Image.Resampling.BICUBIC) for frame in whole]
    np.testing.assert_array_equal(scaled, np.stack(expected))


def test_rotation_of_phone_videos(reading: Reading) -> None:
    """The display matrix of the track header says how a phone was held: 90 degrees clockwise here."""
    data = bytearray(clip(4, size=(64, 48)))
    place = data.index(b"tkhd") + 4 + 4 + 36  # after version, flags and 36 bytes of times, id, duration, layer, volume
    assert struct.unpack_from(">9i", data, place) == (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", data, place, 0, 65536, 0, -65536, 0, 0, 48 << 16, 0, 1 << 30)
    item = reading.opened(bytes(data), 0, 3)
    assert item.size[1:] == (64, 48)
    frames = reading.reader.load(item).pixels
    assert frames.shape == (2, 64, 48, 3)
    assert frame_numbers(frames.transpose(0, 2, 1, 3)) == [0, 3]  # what was left is on top


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animated_pictures(reading: Reading, kind: str) -> None:
    pictures = [PIL.Image.fromarray(numbered(k, 10, 24)) for k in range(12)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(pictures[0], kind, save_all=True, append_images=pictures[1:], duration=50, **options)
    item = reading.opened(data, 0, 5, 11)
    assert (item.header.num_frames, item.header.fps, *item.size[1:]) == (12, 20.0, 10, 24)
    assert frame_numbers(reading.reader.load(item).pixels) == [0, 5, 11]


def test_one_frame_is_a_clip(reading: Reading) -> None:
    assert reading.load(encoded(PIL.Image.fromarray(noise(8, 9)), "GIF"), 0).frames.shape == (1, 8, 9, 3)
    assert reading.load(clip(1), 0).frames.shape == (1, 48, 64, 3)


# ------------------------------------------------------------------------------------------------- objects

FRAMES = np.stack([numbered(k, 6, 8) for k in range(10)])


@pytest.mark.parametrize(
    ("metadata", "indices", "fps"),
    [
        (None, range(10), 2.0),
        ({}, range(10), 2.0),
        ({"fps": 5}, range(10), 5.0),
        ({"fps": 30, "total_num_frames": 300, "frames_indices": list(range(0, 300, 30))}, range(10), 1.0),
        ({"fps": np.float32(30), "total_num_frames": np.int64(300)}, range(10), 30.0),
        ({"fps": 30, "do_sample_frames": True}, [1, 4], 7.0),
    ],
)
def test_frames_in_memory(reading: Reading, metadata: dict[str, Any] | None, indices: Any, fps: float) -> None:
    source = FRAMES if metadata is None else (FRAMES, metadata)
    loaded = reading.reader.load(reading.reader.open("video", source, WHERE, sampler=pick(1, 4, fps=7.0)))
    assert frame_numbers(loaded.frames) == list(indices)
    assert loaded.fps == fps


def test_rate_of_frames_without_metadata(reading: Reading) -> None:
    assert reading.load(FRAMES, 0, facts=FrameFacts(fps=4.0)).fps == 4.0


def test_labels_in_metadata(reading: Reading) -> None:
    """What vLLM and transformers write beside what is used."""
    labels = {"video_backend": "opencv", "width": 8, "height": 6}
    assert reading.load((FRAMES, {"fps": 4.0, **labels})).fps == 4.0


def test_lists_of_pictures(reading: Reading) -> None:
    pictures = [PIL.Image.fromarray(frame).convert("RGBA") for frame in FRAMES]
    np.testing.assert_array_equal(reading.load(pictures, 0).frames, FRAMES)
    np.testing.assert_array_equal(reading.load(list(FRAMES), 0).frames, FRAMES)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((6, 8, 3), np.uint8), r"\[6, 8, 3\]"),
        (np.zeros((2, 6, 8, 5), np.uint8), r"\[2, 6, 8, 5\]"),
        (np.zeros((0, 6, 8, 3), np.uint8), r"\[0, 6, 8, 3\]"),
        (np.zeros((2, 0, 8, 3), np.uint8), "8x0"),
        (np.zeros((2, 6, 8, 3), np.int64), "must be uint8 .* or float .* got int64"),
        ([FRAMES[0], FRAMES[0, :3]], "of one size"),
        ([], "list"),
        ([1, 2], "int"),
        ({"frames": 3}, "dict"),
        ((FRAMES, {"fps": 0}), "positive"),
        ((FRAMES, {"fps": "fast"}), "positive"),
    ],
)
def test_bad_objects(reading: Reading, source: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        reading.opened(source, 0)


@pytest.mark.parametrize(
    ("metadata", "num_frames", "indices", "fps"),
    [
        ({}, 4, [1, 4], 7.0),
        ({"do_sample_frames": False}, 4, range(10), 2.0),
        ({"do_sample_frames": True}, 20, [1, 4], 7.0),
        ({}, 10, range(10), 2.0),
        ({"duration": 5.0}, None, range(10), 2.0),
        ({"duration": 20.0}, None, range(10), 0.5),
        ({"fps": 30, "do_sample_frames": True}, None, [1, 4], 7.0),
    ],
)
def test_when_frames_are_chosen_among(
    reading: Reading, metadata: dict[str, Any], num_frames: int | None, indices: Any, fps: float
) -> None:
    facts = FrameFacts(metadata, num_frames)
    for source in (FRAMES, list(FRAMES), (FRAMES, metadata)):
        opened = reading.reader.open("video", source, WHERE, sampler=pick(1, 4, fps=7.0), facts=facts)
        loaded = reading.reader.load(opened)
        assert (frame_numbers(loaded.frames), loaded.fps) == (list(indices), fps)
        assert opened.is_fixed == (metadata.get("do_sample_frames") is False)


def test_layouts_of_arrays(reading: Reading) -> None:
    """Floats, channels first, grey and transparent ones: the same frames."""
    floats = FRAMES.astype(np.float32) / 255
    alpha = np.concatenate([FRAMES, np.full((10, 6, 8, 1), 255, np.uint8)], axis=3)
    for source in (FRAMES.transpose(0, 3, 1, 2), floats, floats.transpose(0, 3, 1, 2), FRAMES[..., :1], alpha):
        np.testing.assert_array_equal(reading.load(source, 0).frames, FRAMES)
        np.testing.assert_array_equal(reading.load(list(source), 0).frames, FRAMES)


CUT_OFF = encoded(PIL.Image.fromarray(noise(6, 8)), "PNG")[:90]
PICTURES = [encoded(PIL.Image.fromarray(frame), "PNG") for frame in FRAMES]


def test_frames_that_are_files(reading: Reading) -> None:
    """Pictures of any format, decoded where pictures are."""
    mixed = [PICTURES[0], encoded(PIL.Image.fromarray(FRAMES[1]), "BMP"), FRAMES[2], PIL.Image.fromarray(FRAMES[3])]
    assert frame_numbers(reading.load(mixed, 0).frames) == [0, 1, 2, 3]
    opened = reading.opened(PICTURES, 0)
    assert (opened.header.num_frames, opened.size) == (10, (10, 6, 8))
    halves = reading.reader.load(opened, planner=scaled_to(3, 8)).pixels
    expected = [np.asarray(PIL.Image.fromarray(frame).resize((8, 3), PIL.Image.Resampling.BICUBIC)) for frame in FRAMES]
    np.testing.assert_array_equal(halves, np.stack(expected))


def test_only_chosen_files_are_opened(reading: Reading) -> None:
    files: list[Any] = [b"no picture"] * 10
    files[1], files[4] = PICTURES[1], PICTURES[4]
    opened = reading.reader.open("video", files, WHERE, sampler=pick(1, 4), facts=FrameFacts(num_frames=2))
    assert frame_numbers(reading.reader.load(opened).pixels) == [1, 4]


def turned(frame: np.ndarray) -> bytes:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    return encoded(PIL.Image.fromarray(frame), "PNG", exif=exif)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([*PICTURES[:2], b"no picture"], r"^messages\[0\].content\[0\].video_url\[2\]: this is not an image"),
        ([PICTURES[0], b""], r"video_url\[1\]: the image is empty"),
        ([PICTURES[0], encoded(PIL.Image.new("RGB", (9, 9)), "PNG")], "of one size, got 8x6, 9x9"),
        ([PICTURES[0], turned(FRAMES[0])], "of one size( and lie the same way|, got 8x6, 6x8|, got 6x8, 8x6)"),
        (
            [PICTURES[0], encoded(PIL.Image.fromarray(noise(6, 8)), "PNG")[:90]],
            r"video_url\[1\]: the image is broken or cut off|not an image",
        ),
        ([FRAMES[0], FRAMES[1] / 100], r"video_url\[1\]: a float array or tensor must lie within 0 .. 1"),
        (PIL.Image.fromarray(FRAMES[0]), r"got one PIL image \(a list of them is a clip\)"),
        ((b"file", {"fps": 1}), "a video file has its own"),
        (([], {"fps": 1}), "got an empty list"),
        ((FRAMES, {"frames_indices": [1, 2]}), "frames_indices has 2 numbers, but there are 10 frames"),
        ((FRAMES, {"do_sample_frames": "yes"}), "do_sample_frames must be true or false"),
        ((FRAMES, {"do_sample_frames": True}), "do_sample_frames needs fps"),
        ((FRAMES, {"duration": -1}), "duration of a video's metadata must be a positive number"),
        ((FRAMES, {"fpss": 2}), "the video's metadata have an unknown key 'fpss'; known: fps, duration,"),
        # Positions count the time between frames: they would be beyond whole numbers.
        ((FRAMES, {"fps": 1e-300}), "fps must be between .*, got 1e-300"),
        ((FRAMES, {"duration": 1e-320}), "fps must be between .*, got inf"),
        (
            (FRAMES, {"fps": 1, "total_num_frames": 1e300, "frames_indices": range(10)}),
            "fps must be between .*, got 1e-299",
        ),
    ],
)
def test_frames_that_cannot_be_used(reading: Reading, source: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        reading.load(source, 0)
    assert caught.value.message.startswith(WHERE)


# ------------------------------------------------------------------------------------------------- broken files

FAST_START = clip(40, options={"movflags": "faststart"}, gop=5)
MP4 = clip(40)


def no_video() -> bytes:
    """A file with sound only."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"this is no video at all, just text" * 9, "not a video"),
        (MP4[: len(MP4) // 2], "not a video"),  # its index is at the end
        (FAST_START[: len(FAST_START) * 3 // 5], "cut off"),
        (b"GIF89a", "animation|image"),
        (encoded(PIL.Image.fromarray(noise(9, 9)), "JPEG"), "not a video"),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n", "not a video"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "not a video"),
        (no_video(), "no video in it"),
    ],
)
def test_bad_files_are_refused_by_name(reading: Reading, data: bytes, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        reading.load(data, *range(40))
    error = caught.value
    assert error.message.startswith(f"{WHERE}: ") and (error.param, error.status) == ("messages", 400)


def test_broken_pictures_inside_are_refused(reading: Reading) -> None:
    data = bytearray(MP4)
    start = data.index(b"mdat") + 8
    data[start : start + len(MP4) // 2] = bytes(len(MP4) // 2)
    with pytest.raises(RequestError):
        reading.load(bytes(data), *range(40))


def test_a_missing_last_frame_is_stood_in_for() -> None:
    """Containers may count a frame more than the decoder gives."""
    whole = VideoFile(MP4, WHERE, 4096)
    facts = msgspec.msgpack.decode(whole.index, type=VideoIndex)
    longer = msgspec.structs.replace(facts, num_frames=41, pts=[*facts.pts, facts.pts[-1] + 10_000])
    file = VideoFile(MP4, WHERE, 4096, msgspec.msgpack.encode(longer))
    frames = list(file.pictures(np.array([0, 20, 40])))
    assert frame_numbers(np.stack(frames))[:2] == [0, 20] and len(frames) == 3


# ------------------------------------------------------------------------------------------------- limits


def limited(**limits: Any) -> closing[MediaReader]:
    """A reader with other limits."""
    return closing(MediaReader(replace(LIMITS, **limits), 1))


def test_size_of_a_frame() -> None:
    """By the header, for files, animations and arrays; `max_pixels` of exactly the size passes."""
    animation = encoded(PIL.Image.new("RGB", (64, 48)), "GIF")
    with limited(max_image_pixels=64 * 48 - 1) as small:
        for source in (MP4, animation, np.zeros((2, 48, 64, 3), np.uint8)):
            with pytest.raises(RequestError, match=r"more than .* \(--max-image-pixels\)"):
                small.open("video", source, WHERE, sampler=pick(0))
    with limited(max_image_pixels=64 * 48) as enough:
        assert Reading(enough).load(MP4, 0).frames.shape == (1, 48, 64, 3)


def test_a_clip_that_grows_midway_is_refused() -> None:
    """The container announces a small picture; a later parameter set makes it large."""
    small, large = (clip(12, size=size, container="h264", gop=4) for size in ((64, 48), (1024, 768)))
    with limited(max_image_pixels=64 * 48 * 4) as reader, pytest.raises(RequestError, match="cut off|broken|cannot"):
        Reading(reader).load(small + large, 0, 5, 20)


def test_number_of_chosen_frames() -> None:
    frames = np.zeros((4, 8, 8, 3), np.uint8)
    with limited(max_video_frames=3) as few:
        assert len(Reading(few).load(MP4, 0, 1, 2).frames) == 3
        for source, indices in ((MP4, range(4)), (frames, ())):
            with pytest.raises(RequestError, match=r"4 frames are chosen, but at most 3 .*--max-video-frames"):
                Reading(few).opened(source, *indices)


def test_limits_of_frames_that_are_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their number before any is opened; pixels of each by its header; time for all of them together."""
    with limited(max_video_frames=9) as few, pytest.raises(RequestError, match="10 frames are chosen, but at most 9"):
        Reading(few).opened([b"never looked at"] * 10)
    with (
        limited(max_image_pixels=47) as small,
        pytest.raises(RequestError, match=r"video_url\[0\]: .*--max-image-pixels"),
    ):
        Reading(small).opened(PICTURES)
    too_long = pytest.raises(RequestError, match=r"took more than 60 s \(--video-decode-timeout\)")
    with limited(video_decode_timeout=60) as reader:
        opened = Reading(reader).opened(PICTURES)
        now = iter(range(0, 1000, 25))
        monkeypatch.setattr("trifocal.media.decoding.time.monotonic", lambda: next(now))
        monkeypatch.setattr(ImageReader, "load", lambda *_: Image(FRAMES[0]))
        monkeypatch.setattr(ImageReader, "open", lambda *_, **__: opened.source[0])
        with too_long:
            reader.load(opened)
        with too_long:
            Reading(reader).opened(PICTURES)


def test_number_of_frames_looked_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_file, "MAX_FRAMES", 39)
    with pytest.raises(RequestError, match="more than 39 frames"):
        VideoFile(MP4, WHERE, 4096)


def test_a_flood_of_animation_frames(reading: Reading) -> None:
    """A few kilobytes that unpack to gigabytes of pixels."""
    pictures = [PIL.Image.new("P", (4000, 4000), k % 2) for k in range(40)]
    flood = encoded(pictures[0], "GIF", save_all=True, append_images=pictures[1:])
    assert len(flood) < 2 << 20
    with pytest.raises(RequestError, match="40 frames of 4000x4000 are too many"):
        reading.opened(flood, 0)


# ------------------------------------------------------------------------------------------------- what is not read


def with_sound() -> bytes:
    """A clip with a sound track."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as output:
        video, sound = output.add_stream("libx264", rate=10), output.add_stream("aac", rate=16000)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        for k in range(10):
            output.mux(video.encode(av.VideoFrame.from_ndarray(numbered(k, 48, 64), format="rgb24")))
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, 1024 * k
            output.mux(sound.encode(frame))
        for stream in (video, sound):
            output.mux(stream.encode())
    return buffer.getvalue()


def test_sound_is_ignored(reading: Reading) -> None:
    """Not as much as a decoder for it can be opened: the list of codecs has none."""
    assert frame_numbers(reading.load(with_sound(), 0, 9).frames) == [0, 9]
    assert {av.Codec(name, "r").type for name in video_file._CODECS.split(",")} == {"video"}


@pytest.mark.parametrize(("container", "codec", "pixels"), [("mov", "qtrle", "rgb24"), ("flv", "flashsv", "bgr24")])
def test_codecs_beyond_the_list_are_refused(reading: Reading, container: str, codec: str, pixels: str) -> None:
    with pytest.raises(RequestError, match="codec|not a video"):
        reading.opened(clip(3, container=container, codec=codec, pixels=pixels), 0)
