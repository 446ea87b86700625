"""`MediaReader`: media items from bytes, through decoder processes, or from Python objects, here."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import PIL.Image

from trifocal.errors import RequestError
from trifocal.media.arrays import is_array, picture_of
from trifocal.media.cache import MediaCache
from trifocal.media.decode import messages
from trifocal.media.decode.image import OpenedImage, TargetSize, load_image, open_image, refusal
from trifocal.media.decode.pool import Decoder, DecoderDiedError, DecoderPool, DecoderSlowError
from trifocal.media.decode.video import EncodedVideo, FrameFacts, OpenedVideo, Sampler, load_frames, open_frames
from trifocal.media.given import wrong_object
from trifocal.media.limits import MediaLimits
from trifocal.media.media import Image, Media, Video
from trifocal.types import Modality

T = TypeVar("T")
H = TypeVar("H", messages.ImageHeader, messages.VideoHeader)
M = TypeVar("M", Image, Video)


class MediaReader:
    """Opens pictures and clips (header only) and loads them (pixels). Safe to use from several threads; blocks.

    At most `num_decoders` processes. What `cache` holds of files with the same `salt` is not decoded again. Everything
    raises `RequestError` that names the item by `where`.
    """

    def __init__(self, limits: MediaLimits, num_decoders: int, cache: MediaCache | None = None) -> None:
        self.limits = limits
        self._cache = cache or MediaCache(0)
        self._pool = DecoderPool(num_decoders, limits.decode_memory_bytes)

    def open_image(self, source: Any, where: str, *, salt: str | None = None) -> OpenedImage:
        """Open a picture: a file's bytes, a PIL image, or an array as `arrays.picture_of` takes it."""
        if is_array(source):
            source = picture_of(source, where, self.limits.max_image_pixels)
        if isinstance(source, PIL.Image.Image):
            return open_image(source, where, self.limits.max_image_pixels)
        if not isinstance(source, bytes):
            raise wrong_object(source, "image", where)
        job, name = messages.OpenImage(self._file("image", source, where)), self._cache.name(source, salt)
        header = self._header(name, job, source, messages.ImageHeader)
        return OpenedImage(source, header.height, header.width, where, name)

    def load_image(self, opened: OpenedImage, target: TargetSize | None = None) -> Image:
        """Decode a picture, scaled to `target`; see `image.load_image`."""
        data = opened.source
        if not isinstance(data, bytes):
            return load_image(opened, target)
        size, turned = (opened.height, opened.width), (opened.width, opened.height)
        if target is not None:
            size, turned = target(1, *size), target(1, *turned)
        job = messages.LoadImage(self._file("image", data, opened.where), size, turned)

        def ask(decoder: Decoder) -> Image:
            decoder.send(job, data)
            pixels = decoder.receive_frame((size, turned))
            decoder.receive(messages.Done)
            return Image(pixels)

        key = (opened.name, "image", size, turned)
        return self._cache.get(key, Image) or self._kept(key, self._run("image", opened.where, ask))

    def open_video(
        self, source: Any, sampler: Sampler, where: str, *, facts: FrameFacts | None = None, salt: str | None = None
    ) -> OpenedVideo:
        """Open a video file or animated picture (bytes), or frames as `video.open_frames` takes them.

        Frames that are files are decoded as pictures, one by one; `facts` are for frames only.
        """
        if isinstance(source, bytes):
            opened = self._open_file(source, sampler, where, self._cache.name(source, salt))
            self.limits.check_frames(len(opened.sample.indices), where)
            return opened
        check_time = self._clock("video", where)

        def open_one(frame: Any, place: str) -> OpenedImage:
            check_time()
            return self.open_image(frame, place, salt=salt)

        return open_frames(source, sampler, where, self.limits, open_one, facts)

    def load_video(self, opened: OpenedVideo, target: TargetSize | None = None) -> Video:
        """Decode the chosen frames and no others, each scaled to `target` at once."""
        source, indices = opened.source, opened.sample.indices
        if isinstance(source, np.ndarray):
            return load_frames(opened, target)
        if not isinstance(source, EncodedVideo):
            return self._load_pictures(opened, source, target)
        size = (opened.height, opened.width)
        if target is not None:
            size = target(len(indices), *size)
        job = messages.LoadVideo(self._file("video", source.data, opened.where), indices.tolist(), size, source.index)

        def ask(decoder: Decoder) -> Video:
            frames = np.empty((len(indices), *size, 3), np.uint8)
            decoder.send(job, source.data)
            decoder.receive_frames(frames)
            decoder.receive(messages.Done)
            return Video(frames, opened.sample.fps)

        key = (source.name, "video", size, opened.sample.fps, indices.tobytes())
        return self._cache.get(key, Video) or self._kept(key, self._run("video", opened.where, ask))

    def load(self, opened: OpenedImage | OpenedVideo, target: TargetSize | None = None) -> Media:
        """Either of these."""
        if isinstance(opened, OpenedImage):
            return self.load_image(opened, target)
        return self.load_video(opened, target)

    def close(self) -> None:
        """End the decoder processes."""
        self._pool.close()

    def _load_pictures(self, opened: OpenedVideo, pictures: Sequence[OpenedImage], target: TargetSize | None) -> Video:
        """A clip whose frames are pictures."""
        check_time = self._clock("video", opened.where)

        def size_of(_: int, height: int, width: int) -> tuple[int, int]:
            return (height, width) if target is None else target(len(pictures), height, width)

        frames = np.empty((len(pictures), *size_of(1, opened.height, opened.width), 3), np.uint8)
        for index, picture in enumerate(pictures):
            check_time()
            pixels = self.load_image(picture, size_of).pixels
            if pixels.shape != frames.shape[1:]:  # turned by EXIF data that only decoding found
                raise refusal(opened.where, "the frames of a video must be of one size and lie the same way")
            frames[index] = pixels
        return Video(frames, opened.sample.fps)

    def _open_file(self, data: bytes, sampler: Sampler, where: str, name: bytes) -> OpenedVideo:
        job = messages.OpenVideo(self._file("video", data, where))
        found = self._header(name, job, data, messages.VideoHeader)
        sample = sampler(found.num_frames, found.fps)
        source = EncodedVideo(data, found.index, name)
        return OpenedVideo(source, found.num_frames, found.fps, found.height, found.width, sample, where)

    def _header(self, name: bytes, job: messages.OpenImage | messages.OpenVideo, data: bytes, kind: type[H]) -> H:
        key = (name, kind)
        found = self._cache.get(key, kind)
        if found is None:
            modality: Modality = "image" if isinstance(job, messages.OpenImage) else "video"
            found = self._run(modality, job.file.where, partial(_ask, job, data, kind))
            self._cache.add(key, found, len(found.index) if isinstance(found, messages.VideoHeader) else 0)
        return found

    def _kept(self, key: Hashable, media: M) -> M:
        pixels = media.pixels if isinstance(media, Image) else media.frames
        pixels.setflags(write=False)
        self._cache.add(key, media, pixels.nbytes)
        return media

    def _file(self, modality: Modality, data: bytes, where: str) -> messages.File:
        return messages.File(where, len(data), self.limits.max_image_pixels, self.limits.timeout(modality))

    def _run(self, modality: Modality, where: str, work: Callable[[Decoder], T]) -> T:
        try:
            return self._pool.run(work)
        except DecoderDiedError as error:
            raise refusal(where, f"the {modality} makes its decoder fail ({error})") from None
        except DecoderSlowError:
            raise self._too_slow(modality, where) from None

    def _clock(self, modality: Modality, where: str) -> Callable[[], None]:
        """A check to make between the jobs of one item: raises once they take longer than one job may."""
        end = time.monotonic() + self.limits.timeout(modality)

        def check() -> None:
            if time.monotonic() > end:
                raise self._too_slow(modality, where)

        return check

    def _too_slow(self, modality: Modality, where: str) -> RequestError:
        seconds = self.limits.timeout(modality)
        return refusal(where, f"the {modality} takes longer than {seconds:g} s to decode (--{modality}-decode-timeout)")


def _ask(job: messages.Job, data: bytes, kind: type[H], decoder: Decoder) -> H:
    """Have a job done that one message answers."""
    decoder.send(job, data)
    answer = decoder.receive(kind)
    decoder.receive(messages.Done)
    return answer
