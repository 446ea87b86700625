"""`VideoReader`: clips from files and animated pictures, through decoder processes, or from frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from trifocal.media.cache import MediaCache
from trifocal.media.decode import jobs
from trifocal.media.decode.helper import DecoderHelper
from trifocal.media.decode.image import OpenedImage, refusal
from trifocal.media.decode.video import FrameFacts, OpenedVideo, Sampler, load_frames, open_frames
from trifocal.media.decoding import Decoding, ItemReader, Opened, Planner
from trifocal.media.given import videos_of
from trifocal.media.image_reader import ImageReader
from trifocal.media.media import Video
from trifocal.media.plan import ItemPlan


class VideoReader(ItemReader):
    """Clips: a video file or animated picture (bytes), or frames as `video.open_frames` takes them.

    Frames that are files are decoded as pictures, one by one.
    """

    items_of = staticmethod(videos_of)

    def __init__(self, decoding: Decoding) -> None:
        super().__init__(decoding)
        self._images = ImageReader(decoding)

    def open(
        self, source: Any, where: str, *, sampler: Sampler, facts: FrameFacts | None = None, salt: str | None = None
    ) -> OpenedVideo:
        """Look through the clip and choose frames."""
        if isinstance(source, bytes):
            job, name = jobs.OpenVideo(self.decoding.file("video", source, where)), MediaCache.name(source, salt)
            header = self.decoding.header("video", name, job, source, jobs.VideoHeader)
            opened = OpenedVideo(source, header, sampler(header.num_frames, header.fps), where, name)
            self.decoding.limits.check_frames(len(opened.sample.indices), where)
            return opened
        check_time = self.decoding.clock("video", where)

        def open_one(frame: Any, place: str) -> OpenedImage:
            check_time()
            return self._images.open(frame, place, salt=salt)

        return open_frames(source, sampler, where, self.decoding.limits, open_one, facts)

    def load(self, opened: Opened, plan: ItemPlan, planner: Planner) -> Video:
        """Decode the chosen frames and no others."""
        assert isinstance(opened, OpenedVideo)
        data = opened.source
        if isinstance(data, np.ndarray):
            return load_frames(opened, plan)
        if not isinstance(data, bytes):
            return self._load_pictures(opened.where, data, plan)
        job = jobs.LoadVideo(self.decoding.file("video", data, opened.where), plan, opened.header.index)

        def ask(decoder: DecoderHelper) -> Video:
            frames = np.empty((plan.num_frames, *plan.decoded, 3), np.uint8)
            decoder.ask(job, data)
            for pixels in frames:
                decoder.pixels(decoder.answer(jobs.Frame), pixels)
            decoder.done()
            return Video(frames, plan.fps, plan)

        kept = self.decoding.cache.get((opened.name, plan), Video)
        return kept or self.decoding.keep(opened.name, self.decoding.run("video", opened.where, ask))

    def _load_pictures(self, where: str, pictures: Sequence[OpenedImage], plan: ItemPlan) -> Video:
        """A clip whose frames are pictures."""
        check_time = self.decoding.clock("video", where)
        of_frame = plan.of_frame()

        def turned(frame: Opened) -> ItemPlan:
            """For a frame that EXIF data turn which only decoding found."""
            if of_frame.decoded[0] != of_frame.decoded[1]:
                raise refusal(where, "the frames of a video must have the same size and orientation")
            return replace(of_frame, size=frame.size[1:])

        frames = np.empty((len(pictures), *plan.decoded, 3), np.uint8)
        for index, picture in enumerate(pictures):
            check_time()
            frames[index] = self._images.load(picture, of_frame, turned).pixels
        return Video(frames, plan.fps, plan)
