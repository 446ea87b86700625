"""`ImageReader`: pictures from bytes, through decoder processes, or from Python objects, here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import PIL.Image

from trifocal.helpers.pool import HelperDiedError
from trifocal.media.arrays import is_array, picture_of
from trifocal.media.cache import MediaCache
from trifocal.media.decode import jobs
from trifocal.media.decode.helper import DecoderHelper
from trifocal.media.decode.image import OpenedImage, OtherSizeError, load_image, open_image
from trifocal.media.decode.video import FrameFacts, Sampler
from trifocal.media.decoding import ItemReader, Opened, Planner
from trifocal.media.given import images_of, wrong_object
from trifocal.media.media import Image
from trifocal.media.plan import ItemPlan


class ImageReader(ItemReader):
    """Pictures: a file's bytes, a PIL image, or an array as `arrays.picture_of` takes it."""

    items_of = staticmethod(images_of)

    def open(
        self,
        source: Any,
        where: str,
        *,
        sampler: Sampler | None = None,
        facts: FrameFacts | None = None,
        salt: str | None = None,
    ) -> OpenedImage:
        """Read the header."""
        most = self.decoding.limits.max_image_pixels
        if is_array(source):
            source = picture_of(source, where, most)
        if isinstance(source, PIL.Image.Image):
            return open_image(source, where, most)
        if not isinstance(source, bytes):
            raise wrong_object(source, "image", where)
        job, name = jobs.OpenImage(self.decoding.file("image", source, where)), MediaCache.name(source, salt)
        header = self.decoding.header("image", name, job, source, jobs.ImageHeader)
        return OpenedImage(source, header.height, header.width, where, name)

    def load(self, opened: Opened, plan: ItemPlan, planner: Planner) -> Image:
        """Decode; of files whose pixels alone tell that they lie on their side, the true size is remembered."""
        assert isinstance(opened, OpenedImage)
        try:
            return self._load(opened, plan)
        except OtherSizeError as found:
            turned = replace(opened, height=found.height, width=found.width)
        if isinstance(opened.source, bytes):
            self.decoding.keep_header(opened.name, jobs.ImageHeader(turned.height, turned.width))
        return self._load(turned, planner(turned))

    def _load(self, opened: OpenedImage, plan: ItemPlan) -> Image:
        """Raises `OtherSizeError` if the plan is for another size."""
        data = opened.source
        if not isinstance(data, bytes):
            return load_image(opened, plan)
        job = jobs.LoadImage(self.decoding.file("image", data, opened.where), plan)

        def ask(decoder: DecoderHelper) -> Image | jobs.ImageHeader:
            decoder.ask(job, data)
            answer = decoder.next()
            if isinstance(answer, jobs.Frame):
                pixels = np.empty((*plan.decoded, 3), np.uint8)
                decoder.pixels(answer, pixels)
                decoder.done()
                return Image(pixels, plan)
            if not isinstance(answer, jobs.ImageHeader) or (answer.width, answer.height) != plan.size:
                raise HelperDiedError("it sent a message of the wrong kind")
            decoder.done()
            return answer

        kept = self.decoding.cache.get((opened.name, plan), Image)
        if kept is not None:
            return kept
        found = self.decoding.run("image", opened.where, ask)
        if isinstance(found, jobs.ImageHeader):
            raise OtherSizeError(found.height, found.width)
        return self.decoding.keep(opened.name, found)
