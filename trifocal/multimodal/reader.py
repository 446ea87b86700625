"""`MediaReader`: media items from bytes, through decoder processes, or from Python objects, here."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, TypeVar

import numpy as np

from trifocal.multimodal import decoder_messages as messages
from trifocal.multimodal.decoder_pool import Decoder, DecoderDiedError, DecoderPool, DecoderSlowError
from trifocal.multimodal.image import OpenedImage, TargetSize, load_image, open_image, refusal
from trifocal.multimodal.limits import MediaLimits
from trifocal.multimodal.media import Image, Media, Video
from trifocal.multimodal.media_cache import MediaCache
from trifocal.multimodal.video import EncodedVideo, OpenedVideo, Sampler, load_frames, open_frames
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
        """Open a picture: bytes, a PIL image, or an array as `image.open_image` takes it."""
        if not isinstance(source, bytes):
            return open_image(source, where, self.limits.max_image_pixels)
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
        self, source: Any, sampler: Sampler, where: str, *, frames_fps: float = 2.0, salt: str | None = None
    ) -> OpenedVideo:
        """Open a video file or animated picture (bytes), or frames as `video.open_frames` takes them."""
        if isinstance(source, bytes):
            opened = self._open_file(source, sampler, where, self._cache.name(source, salt))
        else:
            opened = open_frames(source, sampler, where, self.limits.max_image_pixels, frames_fps=frames_fps)
        self.limits.check_frames(len(opened.sample.indices), where)
        return opened

    def load_video(self, opened: OpenedVideo, target: TargetSize | None = None) -> Video:
        """Decode the chosen frames and no others, each scaled to `target` at once."""
        source, indices = opened.source, opened.sample.indices
        if not isinstance(source, EncodedVideo):
            return load_frames(opened, target)
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
            seconds = self.limits.timeout(modality)
            message = f"the {modality} takes longer than {seconds:g} s to decode (--{modality}-decode-timeout)"
            raise refusal(where, message) from None


def _ask(job: messages.Job, data: bytes, kind: type[H], decoder: Decoder) -> H:
    """Have a job done that one message answers."""
    decoder.send(job, data)
    answer = decoder.receive(kind)
    decoder.receive(messages.Done)
    return answer
