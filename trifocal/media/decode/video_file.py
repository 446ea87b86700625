"""A video file in memory, through PyAV: frames are counted without decoding, and found by their timestamps.

Runs in a decoder process only (`process.py`): the libraries below are written in C and read what strangers made.
"""

from __future__ import annotations

import io
import struct
from bisect import bisect_right
from collections.abc import Iterator

import av
import msgspec
import numpy as np
import PIL.Image
from av.container import InputContainer
from av.sidedata.sidedata import SideData
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from trifocal.errors import RequestError
from trifocal.media.decode.image import check_size, refusal, upright

MAX_FRAMES = 1_000_000  # nine hours at 30 a second: an index of more would take hundreds of megabytes
_FALLBACK_FPS = 25.0  # ffmpeg's own guess for a stream that does not say
_MAX_FPS = 1000.0
_DECODER_THREADS = 4  # of one clip; several are decoded at once
_SEEK_GAIN = 32  # frames that a seek must save to be worth refilling the decoder
# Self-contained files only. A playlist (HLS, DASH, concat) would make ffmpeg open the files and hosts that it names.
_DEMUXERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,mpegts,mpeg,mpegvideo,m4v,h264,hevc,obu,ivf,ogg,asf"
# Decoders by name: sound is not decoded even to find out what it is, and ffmpeg's old and odd codecs never run.
_CODECS = (
    "h264,hevc,vp8,libvpx,vp9,libvpx-vp9,av1,libdav1d,mpeg4,mpeg1video,mpeg2video,mjpeg,theora,vp6f,flv,h263,"
    "msmpeg4v2,msmpeg4,wmv1,wmv2,wmv3,vc1,prores,dnxhd,dvvideo,ffv1,huffyuv,rawvideo,vvc"
)
_CONTAINER_OPTIONS = {"format_whitelist": _DEMUXERS, "codec_whitelist": _CODECS, "protocol_whitelist": "none"}


class VideoIndex(msgspec.Struct, array_like=True, frozen=True):
    """What looking through a file found. `pts` rises and is empty where frames have no times of their own; `size` is
    (width, height) as coded, `orientation` is EXIF's for the same (1 to 8)."""

    num_frames: int
    fps: float
    size: tuple[int, int]
    orientation: int
    pts: list[int]
    key_pts: list[int]


class VideoFile:
    """The first video stream of a file: `num_frames`, `fps`, `height`, `width` as displayed. Raises `RequestError`.

    With the `index` of an earlier `VideoFile` over the same bytes nothing is looked through.
    """

    def __init__(self, data: bytes, where: str, max_pixels: int, index: bytes | None = None) -> None:
        self._data = data
        self._where = where
        self._max_pixels = max_pixels
        if not data:
            raise refusal(where, "the video is empty")
        self._facts = self._look_through() if index is None else msgspec.msgpack.decode(index, type=VideoIndex)
        self.num_frames, self.fps = self._facts.num_frames, self._facts.fps
        self.width, self.height = self._facts.size if self._facts.orientation < 5 else self._facts.size[::-1]

    @property
    def index(self) -> bytes:
        """What has been found out, for another process."""
        return msgspec.msgpack.encode(self._facts)

    def pictures(self, indices: NDArray[np.int64]) -> Iterator[PIL.Image.Image]:
        """RGB pictures at rising `indices`; frames between them are decoded only if they must be."""
        with self._open() as container:
            stream = self._stream(container)
            stream.thread_type = "AUTO"
            stream.codec_context.thread_count = _DECODER_THREADS
            find = self._by_time if self._facts.pts else self._by_order
            yield from map(self._picture, find(container, stream, indices))

    def _open(self) -> InputContainer:
        return av.open(
            io.BytesIO(self._data), mode="r", container_options=_CONTAINER_OPTIONS, metadata_errors="replace"
        )

    def _stream(self, container: InputContainer) -> VideoStream:
        """The stream to read. Frames that would be too large are refused before there is memory for them."""
        if not container.streams.video:
            raise refusal(self._where, "the file has no video in it")
        stream = container.streams.video[0]
        context = stream.codec_context
        if context.codec.name not in _CODECS.split(","):
            raise refusal(self._where, f"the codec {context.codec.name} is not supported")
        if context.width and context.height:
            check_size(context.height, context.width, self._where, self._max_pixels)
        context.options = {"max_pixels": str(self._max_pixels)}  # a stream may change its size midway
        return stream

    def _look_through(self) -> VideoIndex:
        try:
            with self._open() as container:
                facts = self._read_packets(container, self._stream(container))
            with self._open() as container:  # again, not from its start: raw streams cannot seek
                first = next(container.decode(self._stream(container)), None)
        except (RequestError, MemoryError):
            raise
        except Exception as error:  # demuxers and decoders of broken files fail in every way there is
            reason = error.strerror if isinstance(error, av.FFmpegError) else error
            raise refusal(self._where, f"this is not a video that can be read ({reason})") from None
        if first is None:
            raise refusal(self._where, "the video has no frame that can be decoded")
        check_size(first.height, first.width, self._where, self._max_pixels)
        return msgspec.structs.replace(facts, size=(first.width, first.height), orientation=_orientation(first))

    def _read_packets(self, container: InputContainer, stream: VideoStream) -> VideoIndex:
        # Facts only: the packets themselves would be the file once more.
        packets: list[tuple[int | None, bool, bool]] = []
        for packet in container.demux(stream):
            if packet.size:
                packets.append((packet.pts, packet.is_keyframe, packet.is_discard))
            if len(packets) > MAX_FRAMES:
                raise refusal(self._where, f"the video has more than {MAX_FRAMES} frames, the most that are searched")
        if len(packets) < stream.frames - _tolerance(stream.frames):
            raise refusal(
                self._where,
                f"the video is cut off: its header announces {stream.frames} frames, {len(packets)} were found",
            )
        shown = [(pts, is_key) for pts, is_key, is_discard in packets if not is_discard]
        if not shown:
            raise refusal(self._where, "the video has no frame that can be decoded")
        times = [pts for pts, _ in shown if pts is not None]
        rate = stream.average_rate or stream.guessed_rate
        return VideoIndex(
            num_frames=len(shown),
            fps=min(float(rate), _MAX_FPS) if rate and rate > 0 else _FALLBACK_FPS,
            size=(0, 0),
            orientation=1,
            # Frames are found by time only where each has its own; some AVI and raw streams have none.
            pts=sorted(times) if len(set(times)) == len(shown) else [],
            key_pts=sorted(pts for pts, is_key in shown if is_key and pts is not None),
        )

    def _by_time(
        self, container: InputContainer, stream: VideoStream, indices: NDArray[np.int64]
    ) -> Iterator[VideoFrame]:
        decoder, key_pts = container.decode(stream), self._facts.key_pts
        last: VideoFrame | None = None
        for index in indices:
            wanted = self._facts.pts[index]
            key = bisect_right(key_pts, wanted) - 1
            if key >= 0 and self._index(key_pts[key]) - self._index_of(last) > _SEEK_GAIN:
                container.seek(key_pts[key], stream=stream)
                decoder = container.decode(stream)
            while (last is None or last.pts < wanted) and (frame := next(decoder, None)) is not None:
                last = frame if frame.pts is not None else last
            yield self._near(last, self._index_of(last), index)

    def _by_order(
        self, container: InputContainer, stream: VideoStream, indices: NDArray[np.int64]
    ) -> Iterator[VideoFrame]:
        decoder = container.decode(stream)
        last: VideoFrame | None = None
        position = -1
        for index in indices:
            while position < index and (frame := next(decoder, None)) is not None:
                last = frame
                position += 1
            yield self._near(last, position, index)

    def _index(self, pts: int) -> int:
        return bisect_right(self._facts.pts, pts) - 1

    def _index_of(self, frame: VideoFrame | None) -> int:
        return -1 if frame is None or frame.pts is None else self._index(frame.pts)

    def _near(self, frame: VideoFrame | None, position: int, index: int) -> VideoFrame:
        """`frame`, the last one decoded at `position`, if it is or may stand in for frame `index`."""
        if frame is None or position + _tolerance(self.num_frames) < index:
            raise refusal(self._where, f"the video is cut off: not all of its {self.num_frames} frames can be decoded")
        return frame

    def _picture(self, frame: VideoFrame) -> PIL.Image.Image:
        width, height = self._facts.size  # a stream may change its size midway: frames are scaled to the first one's
        pixels = frame.to_ndarray(format="rgb24", width=width, height=height)
        return upright(PIL.Image.fromarray(pixels), self._facts.orientation)


def _orientation(frame: VideoFrame) -> int:
    """EXIF's orientation for a frame's display matrix, whose rows (a, b, u) and (c, d, v) are where x and y go to."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if not isinstance(matrix, SideData):
        return 1
    a, b, _, c, d = struct.unpack("=5i", bytes(matrix)[:20])
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return {(True, True): 1, (False, True): 2, (False, False): 3, (True, False): 4}[a >= 0, d >= 0]
    return {(True, True): 5, (True, False): 6, (False, False): 7, (False, True): 8}[b >= 0, c >= 0]


def _tolerance(num_frames: int) -> int:
    """Containers count a frame or two that no decoder gives back: the one before stands in. More is a broken file."""
    return max(2, num_frames // 50)
