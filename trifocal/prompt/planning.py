"""`MediaPlanner`: items opened, planned, and refused by their plans before any pixel is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from trifocal.config.engine import EngineConfig
from trifocal.errors import RequestError
from trifocal.media.decode.video import OpenedVideo, num_frames_to_choose_from
from trifocal.media.decoding import Opened
from trifocal.media.limits import TooManyFramesError
from trifocal.media.media import FrameSample, Media, MediaRef
from trifocal.media.plan import ItemPlan
from trifocal.media.reader import MediaReader, with_sample
from trifocal.prompt.item_options import ItemOptions
from trifocal.prompt.processor import TEXT_ONLY, Processor
from trifocal.prompt.proposals import PlannedItem, greatest, proposals
from trifocal.prompt.text import TextEncoder

_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class MediaPlanner:
    """Opens and loads items for one model. Safe to use from several threads; blocks.

    Everything raises `RequestError`: about one item, named by its place, or about all items of a prompt together.
    """

    def __init__(self, config: EngineConfig, processor: Processor, reader: MediaReader, encoder: TextEncoder) -> None:
        self._config = config
        self._processor = processor
        self._reader = reader
        self._encoder = encoder
        embed_bytes = config.model.spec.text.hidden_size * _DTYPE_BYTES[config.model.dtype]
        self._encoder_room = config.cache.encoder_cache_bytes // embed_bytes  # embeddings

    def check_counts(self, refs: Sequence[MediaRef]) -> None:
        """Refuse modalities that the model does not take, and more items of one than --limit-mm-per-prompt allows."""
        for ref in refs:
            if ref.modality not in self._processor.modalities:
                raise RequestError(f"{ref.where}: {TEXT_ONLY}", param="messages")
        for modality, limit in self._config.media.limit_mm_per_prompt.items():
            count = sum(ref.modality == modality for ref in refs)
            if count > limit:
                raise RequestError(
                    f"at most {limit} {modality}(s) may be in one prompt (--limit-mm-per-prompt), got {count}",
                    param="messages",
                )

    def open(self, ref: MediaRef, source: Any, options: ItemOptions, salt: str | None) -> PlannedItem:
        """Read the header of `source`, which `ref` named, choose frames and make the plan."""
        opened = self._opened(ref, source, options, salt)
        return PlannedItem(opened, options, self._plan(options.processor, opened))

    def load(self, item: PlannedItem) -> Media:
        """The pixels of an item, as its plan wants them."""
        return self._reader.load(item.opened, item.plan, partial(self._plan, item.options.processor))

    def check(self, token_ids: Sequence[int], items: Sequence[PlannedItem], options: ItemOptions) -> None:
        """Refuse what will be too much beside `token_ids` with placeholders: tokens, pixels to decode and to hold,
        embeddings."""
        places = [item.plan.modality for item in items]
        num_text = len(token_ids) - len(items) + self._processor.num_label_tokens(places, options.processor)
        plans = [item.plan for item in items]
        error = self._excess(num_text, plans)
        if error is None:
            self._check_encoder_room(items, num_text)
            return
        if not items:
            raise error
        item = max(items, key=lambda each: each.plan.num_tokens)
        frames = f" for {item.plan.num_frames} frames" if isinstance(item.opened, OpenedVideo) else ""
        hint = f"{item.opened.where} takes {item.plan.num_tokens} tokens{frames}."
        message = f"{error.message.rstrip('.')}. {hint}{self._proposal(items, num_text)}"
        raise RequestError(message, param=error.param, code=error.code)

    # ------------------------------------------------------------------------------------------ its parts

    def _opened(self, ref: MediaRef, source: Any, options: ItemOptions, salt: str | None) -> Opened:
        is_file = isinstance(source, bytes)
        if is_file and {"fps", "num_frames"} <= ref.options.keys():
            raise RequestError(f"{ref.where}: give fps or num_frames (nframes), not both", param=ref.where)
        facts = options.facts
        seen = [(0 if is_file else num_frames_to_choose_from(source, facts), facts.fps)]

        def sampler(num_frames: int, fps: float) -> FrameSample:
            seen.append((num_frames, fps))
            wanted = options.for_file(num_frames, fps) if is_file else options.for_frames()
            if options.is_capped:
                self._reader.limits.check_frames(wanted.get("num_frames", 0), ref.where)
            return self._processor.sample_frames(num_frames, fps, wanted)

        try:
            return self._reader.open(ref.modality, source, ref.where, sampler=sampler, facts=facts, salt=salt)
        except TooManyFramesError as error:
            raise self._with_frames_that_fit(error, *seen[-1]) from None

    def _plan(self, options: Mapping[str, Any], opened: Opened) -> ItemPlan:
        try:
            return with_sample(self._processor.plan(opened.modality, opened.size, options), opened)
        except RequestError as error:
            raise RequestError(f"{opened.where}: {error.message}", param=error.param) from None

    def _excess(self, num_text: int, plans: Sequence[ItemPlan]) -> RequestError | None:
        """The error about a prompt of these items and `num_text` other tokens, if it is too much."""
        total = num_text + sum(plan.num_tokens for plan in plans)
        if total > self._config.scheduling.max_model_len:
            return self._encoder.too_long(total)
        try:
            self._reader.limits.check_request(plans)
        except RequestError as error:
            return error
        return None

    def _check_encoder_room(self, items: Sequence[PlannedItem], num_text: int) -> None:
        """Refuse an item of more embeddings than the encoder's cache holds, as the engine would, with a proposal."""
        largest = max((item.plan for item in items), key=lambda plan: plan.num_embeds, default=None)
        if largest is None or largest.num_embeds <= self._encoder_room:
            return
        raise RequestError(
            f"one {largest.modality} takes {largest.num_embeds} embeddings, but the encoder cache holds "
            f"{self._encoder_room} (--encoder-cache-gib); send a smaller one.{self._proposal(items, num_text)}",
            param="messages",
            status=413,
        )

    def _proposal(self, items: Sequence[PlannedItem], num_text: int) -> str:
        """What would bring these items, beside `num_text` other tokens, within all limits, and where to say it."""

        def fits(plans: Sequence[ItemPlan]) -> bool:
            is_room = max(plan.num_embeds for plan in plans) <= self._encoder_room
            return is_room and self._excess(num_text + 1, plans) is None  # an answer has at least one token

        found = proposals(items, self._processor, fits)
        is_overruled = any(item.options.overrules_request for item in items)
        place = "in each part concerned" if is_overruled else "in mm_processor_kwargs or in each part"
        return f" It would fit with {' or '.join(found)} ({place})." if found else ""

    def _with_frames_that_fit(self, error: RequestError, num_frames: int, fps: float) -> RequestError:
        """`error` about too many chosen frames, with the `num_frames` that would be allowed.

        `num_frames`, `fps`: what there was to choose from, 0 if nothing was.
        """
        if not num_frames:
            message = f"{error.message}; do_sample_frames is false, so all are used: send fewer, or leave it out"
            return RequestError(message, param=error.param)
        most = self._reader.limits.max_video_frames

        def is_enough(value: int) -> bool:
            sample = self._processor.sample_frames(num_frames, fps, {"num_frames": value})
            return len(sample.indices) <= most

        found = greatest(1, most, 1, is_enough)
        hint = "" if found is None else f"; num_frames {found} would be allowed"
        return RequestError(f"{error.message}; choose fewer by fps or num_frames{hint}", param=error.param)
