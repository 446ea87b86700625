"""Clips whose frames tell their numbers: what is asked for is what comes, and broken ones are refused by name."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import PIL.Image
import pytest

from tests.multimodal.samples import clip, encoded, frame_numbers, noise, numbered
from trifocal.multimodal import image, video
from trifocal.multimodal.processor import FrameSample
from trifocal.multimodal.video import OpenedVideo, load_video, open_video
from trifocal.multimodal.video_file import VideoFile
from trifocal.types import RequestError

WHERE = "messages[0].content[0].video_url"


def pick(*indices: int, fps: float = 2.0) -> video.Sampler:
    """A sampler that wants these frames."""
    return lambda _total, _fps: FrameSample(np.array(indices, np.int64), fps)


def opened(source: Any, *indices: int, **options: Any) -> OpenedVideo:
    """Open, wanting these frames."""
    return open_video(source, pick(*indices), WHERE, **options)


@pytest.mark.parametrize(
    ("container", "codec"),
    [("mp4", "libx264"), ("mp4", "mpeg4"), ("matroska", "libx264"), ("webm", "libvpx"), ("avi", "mpeg4"),
     ("mpegts", "libx264"), ("h264", "libx264"), ("flv", "libx264")],
)  # fmt: skip
def test_chosen_frames_of_every_container(container: str, codec: str) -> None:
    item = opened(clip(40, 10, container=container, codec=codec), 0, 7, 13, 22, 39)
    assert (item.num_frames, item.height, item.width) == (40, 48, 64)
    assert item.fps == pytest.approx(10, rel=0.01) or container == "h264"  # a raw stream has no clock
    loaded = load_video(item)
    assert frame_numbers(loaded.frames) == [0, 7, 13, 22, 39]
    assert loaded.fps == 2.0 and loaded.frames.dtype == np.uint8


def test_seeking_finds_the_same_frames_as_decoding_all() -> None:
    """Far frames of a long clip are reached by key frames; B-frames lie around them."""
    data = clip(250, 25, gop=30)
    wanted = [0, 3, 100, 101, 130, 149, 150, 151, 209, 240, 249]
    loaded = load_video(opened(data, *wanted))
    assert frame_numbers(loaded.frames) == wanted
    assert frame_numbers(load_video(opened(data, *range(250))).frames) == list(range(250))


def test_only_what_is_needed_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    converted = []
    original = VideoFile._to_rgb
    monkeypatch.setattr(VideoFile, "_to_rgb", lambda self, frame: converted.append(1) or original(self, frame))
    load_video(opened(clip(40), 5, 30))
    assert len(converted) == 2


def test_sampler_sees_count_and_rate() -> None:
    seen = []

    def sampler(total: int, fps: float) -> FrameSample:
        seen.append((total, fps))
        return FrameSample(np.array([0]), 1.0)

    open_video(clip(33, 15), sampler, WHERE)
    assert seen == [(33, 15.0)]


def test_scaling_while_decoding() -> None:
    data = clip(10, size=(64, 48))
    whole = load_video(opened(data, 1, 8)).frames
    scaled = load_video(opened(data, 1, 8), lambda n, height, width: (height // 2, width // n)).frames
    expected = [PIL.Image.fromarray(frame).resize((32, 24), PIL.Image.Resampling.BICUBIC) for frame in whole]
    np.testing.assert_array_equal(scaled, np.stack(expected))


def test_rotation_of_phone_videos() -> None:
    """The display matrix of the track header says how a phone was held: 90 degrees clockwise here."""
    data = bytearray(clip(4, size=(64, 48)))
    place = data.index(b"tkhd") + 4 + 4 + 36  # after version, flags and 36 bytes of times, id, duration, layer, volume
    assert struct.unpack_from(">9i", data, place) == (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", data, place, 0, 65536, 0, -65536, 0, 0, 48 << 16, 0, 1 << 30)
    item = opened(bytes(data), 0, 3)
    assert (item.height, item.width) == (64, 48)
    frames = load_video(item).frames
    assert frames.shape == (2, 64, 48, 3)
    assert frame_numbers(frames.transpose(0, 2, 1, 3)) == [0, 3]  # what was left is on top


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animated_pictures(kind: str) -> None:
    pictures = [PIL.Image.fromarray(numbered(k, 10, 24)) for k in range(12)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(pictures[0], kind, save_all=True, append_images=pictures[1:], duration=50, **options)
    item = opened(data, 0, 5, 11)
    assert (item.num_frames, item.fps, item.height, item.width) == (12, 20.0, 10, 24)
    assert frame_numbers(load_video(item).frames) == [0, 5, 11]


def test_one_frame_is_a_clip() -> None:
    assert load_video(opened(encoded(PIL.Image.fromarray(noise(8, 9)), "GIF"), 0)).frames.shape == (1, 8, 9, 3)
    assert load_video(opened(clip(1), 0)).frames.shape == (1, 48, 64, 3)


# ------------------------------------------------------------------------------------------------- objects

FRAMES = np.stack([numbered(k, 6, 8) for k in range(10)])


@pytest.mark.parametrize(
    ("metadata", "indices", "fps"),
    [
        (None, range(10), 2.0),
        ({}, range(10), 2.0),
        ({"fps": 5}, range(10), 5.0),
        ({"fps": 30, "total_num_frames": 300, "frames_indices": list(range(0, 300, 30))}, range(10), 1.0),
        ({"fps": 30, "total_num_frames": 300}, range(10), 30.0),
        ({"fps": 30, "do_sample_frames": True}, [1, 4], 7.0),
    ],
)
def test_frames_in_memory(metadata: dict[str, Any] | None, indices: Any, fps: float) -> None:
    source = FRAMES if metadata is None else (FRAMES, metadata)
    loaded = load_video(open_video(source, pick(1, 4, fps=7.0), WHERE))
    assert frame_numbers(loaded.frames) == list(indices)
    assert loaded.fps == fps


def test_rate_of_frames_without_metadata() -> None:
    assert load_video(opened(FRAMES, 0, frames_fps=4.0)).fps == 4.0


def test_lists_of_pictures() -> None:
    pictures = [PIL.Image.fromarray(frame).convert("RGBA") for frame in FRAMES]
    np.testing.assert_array_equal(load_video(opened(pictures, 0)).frames, FRAMES)
    np.testing.assert_array_equal(load_video(opened(list(FRAMES), 0)).frames, FRAMES)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((6, 8, 3), np.uint8), r"\[6, 8, 3\]"),
        (np.zeros((2, 6, 8, 4), np.uint8), r"\[2, 6, 8, 4\]"),
        (np.zeros((0, 6, 8, 3), np.uint8), r"\[0, 6, 8, 3\]"),
        (np.zeros((2, 0, 8, 3), np.uint8), "8x0"),
        (np.zeros((2, 6, 8, 3), np.float64), "uint8"),
        ([FRAMES[0], FRAMES[0, :3]], "of one size"),
        ([], "list"),
        ([1, 2], "int"),
        ({"frames": 3}, "dict"),
        ((FRAMES, {"fps": 0}), "positive"),
        ((FRAMES, {"fps": "fast"}), "positive"),
    ],
)
def test_bad_objects(source: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        opened(source, 0)


# ------------------------------------------------------------------------------------------------- broken files

FAST_START = clip(40, options={"movflags": "faststart"}, gop=5)
MP4 = clip(40)


def no_video() -> bytes:
    """A file with sound only."""
    import av

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
def test_bad_files_are_refused_by_name(data: bytes, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        load_video(opened(data, *range(40)))
    error = caught.value
    assert error.message.startswith(f"{WHERE}: ") and (error.param, error.status) == ("messages", 400)


def test_broken_pictures_inside_are_refused() -> None:
    data = bytearray(MP4)
    start = data.index(b"mdat") + 8
    data[start : start + len(MP4) // 2] = bytes(len(MP4) // 2)
    with pytest.raises(RequestError):
        load_video(opened(bytes(data), *range(40)))


def test_a_missing_last_frame_is_stood_in_for() -> None:
    """Containers may count a frame more than the decoder gives."""
    item = opened(clip(40), 0, 20, 39)
    item.source._pts.append(item.source._pts[-1] + 10_000)
    item.source.num_frames += 1
    loaded = load_video(OpenedVideo(item.source, 41, 10.0, 48, 64, FrameSample(np.array([0, 20, 40]), 1.0), WHERE))
    assert frame_numbers(loaded.frames)[:2] == [0, 20] and len(loaded.frames) == 3


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "MAX_FRAME_BYTES", 3 * 48 * 64 * 3 - 1)
    with pytest.raises(RequestError, match="3 frames of 64x48 are too many"):
        load_video(opened(MP4, 0, 1, 2))
    assert len(load_video(opened(MP4, 0, 1, 2), lambda *_: (24, 32)).frames) == 3
    monkeypatch.setattr(image, "MAX_PIXELS", 64 * 48 - 1)
    with pytest.raises(RequestError, match="64x48 is more than"):
        opened(MP4, 0)
    monkeypatch.undo()
    monkeypatch.setattr(video, "MAX_FRAMES", 39)
    with pytest.raises(RequestError, match="has 40 frames"):
        opened(MP4, 0)
