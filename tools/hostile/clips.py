"""Hostile clips: broken at random in every container, playlists that name files and hosts, tables that lie."""

from __future__ import annotations

import random
import struct
import tempfile
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import cache, partial
from pathlib import Path

import av
import numpy as np

from tools.hostile.case import Call, Case, ask_about_bytes, ruined
from tools.hostile.pictures import gif_flood

CONTAINERS = {
    "mp4": "libx264", "mov": "mpeg4", "matroska": "libx264", "webm": "libvpx", "avi": "mpeg4", "mpegts": "libx264",
    "flv": "libx264", "h264": "libx264", "ogg": "libtheora",
}  # fmt: skip
MUTATIONS = 8


def cases() -> Iterator[Case]:
    """All of them."""
    for container in CONTAINERS:
        for number in range(MUTATIONS):
            yield Case(f"clip/{container}/{number}", partial(_mutated, container))
    for name, make in SPECIAL.items():
        yield Case(f"clip/{name}", partial(_special, make), is_slow=name in SLOW)


def _mutated(container: str, chance: random.Random) -> Call:
    data = ruined(sample(container), chance)
    return ask_about_bytes(data, chance.choice(["video_url", "video_url", "image_url"]), "video/mp4")


def _special(make: Callable[[], bytes], chance: random.Random) -> Call:
    return ask_about_bytes(make(), "video_url", "video/mp4")


@cache
def sample(container: str, size: tuple[int, int] = (64, 48), num_frames: int = 16) -> bytes:
    """A good clip; mp4 where this build of ffmpeg cannot write the codec."""
    codec = CONTAINERS[container]
    if codec not in av.codecs_available:
        container, codec = "mp4", "mpeg4"
    shades = np.random.default_rng(3).integers(0, 256, num_frames, np.uint8)
    with tempfile.NamedTemporaryFile() as file, av.open(file.name, "w", format=container) as output:
        stream = output.add_stream(codec, rate=8)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.time_base = Fraction(1, 8)
        for shade in shades:
            frame = av.VideoFrame.from_ndarray(np.full((size[1], size[0], 3), shade, np.uint8), format="rgb24")
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
        output.close()
        return Path(file.name).read_bytes()


def with_field(container: str, name: bytes, offset: int, value: int, form: str = ">I") -> bytes:
    """A clip with a number changed, `offset` bytes behind the name of its box."""
    data = bytearray(sample(container))
    struct.pack_into(form, data, data.index(name) + len(name) + offset, value)
    return bytes(data)


SPECIAL: dict[str, Callable[[], bytes]] = {
    "hls playlist of a file": lambda: b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
    "hls playlist of a host": lambda: b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:1/x.ts\n#EXT-X-ENDLIST\n",
    "concat": lambda: b"ffconcat version 1.0\nfile /etc/passwd\n",
    "dash": lambda: b"<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011'><BaseURL>file:///etc/</BaseURL></MPD>",
    "sdp": lambda: b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    "subtitles": lambda: b"1\n00:00:00,000 --> 99:59:59,000\n<font face=x>hello\n\n" * 50,
    "avi with sound only": lambda: b"RIFF\x24\0\0\0AVI LIST\x04\0\0\0hdrl" + bytes(40),
    "samples without end": lambda: with_field("mp4", b"stsz", 8, 0xFFFFFFFF),
    "samples of one byte": lambda: with_field("mp4", b"stsz", 4, 1),
    "times without end": lambda: with_field("mp4", b"stts", 8, 0xFFFFFFFF),
    "track of 65535 pixels a side": lambda: with_field("mp4", b"avc1", 24, 0xFFFFFFFF),
    "track of no pixels": lambda: with_field("mp4", b"avc1", 24, 0),
    "clock of nothing": lambda: with_field("mp4", b"mdhd", 12, 0),
    "clock of four billion": lambda: with_field("mp4", b"mdhd", 12, 0xFFFFFFFF),
    "box of 16 exabytes": lambda: b"\0\0\0\1moov\xff\xff\xff\xff\xff\xff\xff\xff" + bytes(100),
    "boxes in boxes": lambda: b"".join(struct.pack(">I", 8 * (2000 - k)) + b"moov" for k in range(2000)),
    "a size that changes": lambda: sample("h264") + sample("h264", (640, 480)) + sample("h264", (32, 2048)),
    "a thousand frames": lambda: sample("mp4", (16, 16), 1000),
    "huge frames": lambda: sample("mp4", (4096, 2304), 4),
    "gif flood": lambda: gif_flood(60, 4000),
    "gif of 3000 small frames": lambda: gif_flood(3000, 16),
    "two clips": lambda: sample("mp4") + sample("matroska"),
    "text": lambda: b"I am a clip, trust me. " * 1000,
}  # fmt: skip
SLOW = {"gif flood", "huge frames", "a thousand frames", "gif of 3000 small frames"}
