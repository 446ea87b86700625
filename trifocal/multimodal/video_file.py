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

_FALLBACK_FPS = 25.0  # ffmpeg's own guess for a stream that does not say
_MAX_FPS = 1000.0
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
                self._read_header(container)
        except av.FFmpegError as error:
            raise refusal(where, f"this is not a video that can be read ({error.strerror})") from None
        check_size(self.height, self.width, where)

    def frames(self, indices: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
        """RGB frames uint8 [height, width, 3] at rising `indices`; those between are decoded only if they must be."""
        with self._open() as container:
            stream = _video_stream(container)
            assert stream is not None
            stream.thread_type = "AUTO"
            find = self._by_time if self._pts else self._by_order
            found = find(container, stream, indices)
            num_found, last = 0, None
            for last in map(self._to_rgb, found):
                num_found += 1
                yield last
        # Containers count a frame or two that no decoder gives back: the one before stands in. More is a cut file.
        if last is None or indices[num_found - 1] + max(2, self.num_frames // 50) < indices[-1]:
            message = f"the video is cut off: of {self.num_frames} frames that it announces the later ones are missing"
            raise refusal(self._where, message)
        for _ in indices[num_found:]:
            yield last

    def _open(self) -> InputContainer:
        return av.open(io.BytesIO(self._data), mode="r", container_options=_CONTAINER_OPTIONS)

    def _read_header(self, container: InputContainer) -> None:
        stream = _video_stream(container)
        if stream is None:
            raise refusal(self._where, "the file has no video in it")
        packets = [packet for packet in container.demux(stream) if packet.size and not packet.is_discard]
        times = [packet.pts for packet in packets if packet.pts is not None]
        # Frames are found by time only where each has its own; some AVI and raw streams have none.
        self._pts = sorted(times) if len(set(times)) == len(packets) else []
        self._key_pts = sorted(packet.pts for packet in packets if packet.is_keyframe and packet.pts is not None)
        self.num_frames = len(packets)
        rate = stream.average_rate or stream.guessed_rate
        self.fps = min(float(rate), _MAX_FPS) if rate and rate > 0 else _FALLBACK_FPS
        container.seek(0)
        first = next(container.decode(stream), None) if packets else None
        if first is None:
            raise refusal(self._where, "the video has no frame that can be decoded")
        self._size = (first.width, first.height)
        self._quarter_turns = round(first.rotation / 90) % 4
        is_upright = self._quarter_turns % 2 == 0
        self.width, self.height = self._size if is_upright else self._size[::-1]

    def _by_time(
        self, container: InputContainer, stream: VideoStream, indices: NDArray[np.int64]
    ) -> Iterator[VideoFrame]:
        position = -1  # index of the last frame that the decoder gave
        decoder = container.decode(stream)
        for index in indices:
            wanted = self._pts[index]
            key = bisect_right(self._key_pts, wanted) - 1
            if key >= 0 and bisect_right(self._pts, self._key_pts[key]) - 1 - position > _SEEK_GAIN:
                container.seek(self._key_pts[key], stream=stream)
                decoder = container.decode(stream)
            frame = next((frame for frame in decoder if frame.pts is not None and frame.pts >= wanted), None)
            if frame is None:
                return
            position = int(index)
            yield frame

    def _by_order(
        self, container: InputContainer, stream: VideoStream, indices: NDArray[np.int64]
    ) -> Iterator[VideoFrame]:
        wanted = iter(indices.tolist())
        index = next(wanted, None)
        for position, frame in enumerate(container.decode(stream)):
            if position == index:
                yield frame
                index = next(wanted, None)
                if index is None:
                    return

    def _to_rgb(self, frame: VideoFrame) -> NDArray[np.uint8]:
        width, height = self._size  # a stream may change its size midway: frames are scaled to the first one's
        pixels = frame.to_ndarray(format="rgb24", width=width, height=height)
        return np.ascontiguousarray(np.rot90(pixels, self._quarter_turns))


def _video_stream(container: InputContainer) -> VideoStream | None:
    return next(iter(container.streams.video), None)
