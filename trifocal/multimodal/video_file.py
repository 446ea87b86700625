"""A video file in memory, through PyAV: frames are counted without decoding, and found by their timestamps."""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Iterator

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from trifocal.multimodal.image import check_size, refusal
from trifocal.types import RequestError

_FALLBACK_FPS = 25.0  # ffmpeg's own guess for a stream that does not say
_MAX_FPS = 1000.0
_DECODER_THREADS = 4  # of one clip; several are decoded at once
_SEEK_GAIN = 32  # frames that a seek must save to be worth refilling the decoder
# Self-contained files only. A playlist (HLS, DASH, concat) would make ffmpeg open the files and hosts that it names.
_DEMUXERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,mpegts,mpeg,mpegvideo,m4v,h264,hevc,obu,ivf,ogg,asf"
_CONTAINER_OPTIONS = {"format_whitelist": _DEMUXERS, "protocol_whitelist": "none"}


class VideoFile:
    """The first video stream of a file: `num_frames`, `fps`, `height`, `width` as displayed. Raises `RequestError`."""

    def __init__(self, data: bytes, where: str) -> None:
        self._data = data
        self._where = where
        if not data:
            raise refusal(where, "the video is empty")
        try:
            with self._open() as container:
                self._read_packets(container)
            with self._open() as container:  # again, not from its start: raw streams cannot seek
                self._read_first_frame(container)
        except RequestError:
            raise
        except Exception as error:  # demuxers and decoders of broken files fail in every way there is
            reason = error.strerror if isinstance(error, av.FFmpegError) else error
            raise refusal(where, f"this is not a video that can be read ({reason})") from None
        check_size(self.height, self.width, where)

    def frames(self, indices: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
        """RGB frames uint8 [height, width, 3] at rising `indices`; those between are decoded only if they must be."""
        with self._open() as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            stream.codec_context.thread_count = _DECODER_THREADS
            find = self._by_time if self._pts else self._by_order
            yield from map(self._to_rgb, find(container, stream, indices))

    def _open(self) -> InputContainer:
        return av.open(
            io.BytesIO(self._data), mode="r", container_options=_CONTAINER_OPTIONS, metadata_errors="replace"
        )

    def _read_packets(self, container: InputContainer) -> None:
        if not container.streams.video:
            raise refusal(self._where, "the file has no video in it")
        stream = container.streams.video[0]
        if stream.codec_context.width and stream.codec_context.height:  # before a frame of that size is decoded
            check_size(stream.codec_context.height, stream.codec_context.width, self._where)
        # Facts only: the packets themselves would be the file once more.
        packets = [(p.pts, p.is_keyframe, p.is_discard) for p in container.demux(stream) if p.size]
        if len(packets) < stream.frames - _tolerance(stream.frames):
            raise refusal(self._where, f"the video is cut off: {stream.frames} frames announced, {len(packets)} found")
        shown = [(pts, is_key) for pts, is_key, is_discard in packets if not is_discard]
        if not shown:
            raise refusal(self._where, "the video has no frame that can be decoded")
        times = [pts for pts, _ in shown if pts is not None]
        # Frames are found by time only where each has its own; some AVI and raw streams have none.
        self._pts = sorted(times) if len(set(times)) == len(shown) else []
        self._key_pts = sorted(pts for pts, is_key in shown if is_key and pts is not None)
        self.num_frames = len(shown)
        rate = stream.average_rate or stream.guessed_rate
        self.fps = min(float(rate), _MAX_FPS) if rate and rate > 0 else _FALLBACK_FPS

    def _read_first_frame(self, container: InputContainer) -> None:
        first = next(container.decode(container.streams.video[0]), None)
        if first is None:
            raise refusal(self._where, "the video has no frame that can be decoded")
        self._size = (first.width, first.height)
        self._quarter_turns = round(first.rotation / 90) % 4
        is_upright = self._quarter_turns % 2 == 0
        self.width, self.height = self._size if is_upright else self._size[::-1]

    def _by_time(
        self, container: InputContainer, stream: VideoStream, indices: NDArray[np.int64]
    ) -> Iterator[VideoFrame]:
        decoder = container.decode(stream)
        last: VideoFrame | None = None
        for index in indices:
            wanted, key = self._pts[index], bisect_right(self._key_pts, self._pts[index]) - 1
            if key >= 0 and self._index(self._key_pts[key]) - self._index_of(last) > _SEEK_GAIN:
                container.seek(self._key_pts[key], stream=stream)
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
        return bisect_right(self._pts, pts) - 1

    def _index_of(self, frame: VideoFrame | None) -> int:
        return -1 if frame is None or frame.pts is None else self._index(frame.pts)

    def _near(self, frame: VideoFrame | None, position: int, index: int) -> VideoFrame:
        """`frame`, the last one decoded at `position`, if it is or may stand in for frame `index`."""
        if frame is None or position + _tolerance(self.num_frames) < index:
            raise refusal(self._where, f"the video is cut off: not all of its {self.num_frames} frames can be decoded")
        return frame

    def _to_rgb(self, frame: VideoFrame) -> NDArray[np.uint8]:
        width, height = self._size  # a stream may change its size midway: frames are scaled to the first one's
        pixels = frame.to_ndarray(format="rgb24", width=width, height=height)
        return np.ascontiguousarray(np.rot90(pixels, self._quarter_turns))


def _tolerance(num_frames: int) -> int:
    """Containers count a frame or two that no decoder gives back: the one before stands in. More is a broken file."""
    return max(2, num_frames // 50)
