"""`RequestOptions`: the options of items that the server's flags, a request and its parts give, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trifocal.config.engine import EngineConfig
from trifocal.errors import ArgumentError, RequestError
from trifocal.media.media import MediaRef
from trifocal.media.modalities import MODALITIES
from trifocal.prompt.item_options import (
    ItemOptions,
    as_object,
    check_list,
    reading_layer,
    renamed_option_errors,
    seen_by_processor,
)
from trifocal.prompt.part_options import whole
from trifocal.prompt.processor import Processor


class RequestOptions:
    """Lays options over those of the server, as far as the family of `processor` knows them.

    Raises `ArgumentError` for what is wrong with --mm-processor-kwargs and --media-io-kwargs.
    """

    def __init__(self, config: EngineConfig, processor: Processor) -> None:
        self._processor = processor
        self._server_kwargs = config.media.mm_processor_kwargs
        try:
            processor.check_options(seen_by_processor(self._server_kwargs))
        except RequestError as error:
            message = error.message.removeprefix("mm_processor_kwargs: ")
            raise ArgumentError("{mm_processor_kwargs}: {}", message) from None
        try:
            reading = reading_layer(config.media.media_io_kwargs)
            self._check_reading(reading)
        except RequestError as error:
            message = error.message.removeprefix("media_io_kwargs: ")
            raise ArgumentError("{media_io_kwargs}: {}", message) from None
        self._server = ItemOptions().overlaid(self._server_kwargs).overlaid(reading, is_own=True, is_capped=True)

    def of_request(
        self, mm_processor_kwargs: Mapping[str, Any] | None, media_io_kwargs: Mapping[str, Any] | None
    ) -> ItemOptions:
        """The request's over the server's."""
        given = whole(as_object(mm_processor_kwargs, "mm_processor_kwargs"))
        server = {name: value for name, value in self._server_kwargs.items() if name not in given}
        self._processor.check_options(seen_by_processor({**server, **given}))
        reading = reading_layer(as_object(media_io_kwargs, "media_io_kwargs"))
        self._check_reading(reading)
        return self._server.overlaid(given).overlaid(reading, is_own=True, is_capped=True)

    def of_items(self, refs: Sequence[MediaRef], request: ItemOptions) -> list[ItemOptions]:
        """The parts' over the request's. Raises `RequestError` naming the part."""
        has_frames = [MODALITIES[ref.modality].frames is not None for ref in refs]
        check_list(request, sum(has_frames))
        each = []
        for index, ref in enumerate(refs):
            options = request.of_item(ref.options, sum(has_frames[:index]))
            with renamed_option_errors(ref.where, ref.where):
                self._processor.check_options({**options.processor, **seen_by_processor(ref.options)})
            each.append(options)
        return each

    def _check_reading(self, reading: Mapping[str, Any]) -> None:
        """Whether the family can do what media_io_kwargs say."""
        with renamed_option_errors("media_io_kwargs: video", "media_io_kwargs"):
            frames = {name: reading[name] for name in ("num_frames", "fps") if reading.get(name) not in (None, -1)}
            self._processor.check_options(frames)
