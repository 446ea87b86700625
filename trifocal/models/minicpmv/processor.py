"""MiniCPM-V: media and tokens in, `Prompt` out. Sources: OpenBMB's `processing_minicpmv.py`, 2.0's and 2.5's `chat`.

In a prompt that is not expanded yet one `<image>` stands for a picture and one `<slice>` for a clip: single control
tokens, so that the words around them are tokenised as they will stand. Raw prompts may also spell them as the model
cards do, `(<image>./</image>)` and `(<video>./</video>)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trifocal.errors import RequestError
from trifocal.media.hashing import content_hash
from trifocal.media.media import FrameSample, Image, Media
from trifocal.media.plan import ItemPlan
from trifocal.model_spec import ModelSpec
from trifocal.models.minicpmv.config import MiniCPMVConfig, Version
from trifocal.models.minicpmv.options import MOST_SLICES, VIDEO_MAX_SLICES, MediaOptions
from trifocal.models.minicpmv.slicing import Slicer
from trifocal.prompt.processor import Processor, SizeOption
from trifocal.tokenizer import Tokenizer
from trifocal.types import MediaItem, Modality, Prompt, Span

_SPELLINGS: dict[Modality, str] = {"image": "(<image>./</image>)", "video": "(<video>./</video>)"}
_STOP_TOKENS: dict[Version, tuple[str, ...]] = {
    (2, 0): ("</s>",),
    (2, 5): ("<|eot_id|>", "<|end_of_text|>"),
    (2, 6): ("<|im_end|>", "<|endoftext|>"),
}
# Version 2.0 was released without a template; its `chat` writes this.
_TEMPLATE_2_0 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<AI>' if message['role'] == 'assistant' else '<用户>' }}{{ message['content'] }}"
    "{% endfor %}{% if add_generation_prompt %}<AI>{% endif %}"
)


@dataclass(slots=True)
class _Tokens:
    """Token ids that grow, and which of them take an embedding."""

    ids: list[int] = field(default_factory=list)
    is_embed: list[bool] = field(default_factory=list)

    def add(self, ids: Sequence[int], *, is_embed: bool = False) -> None:
        self.ids += ids
        self.is_embed += [is_embed] * len(ids)


class MiniCPMVProcessor(Processor):
    """Preprocessing of MiniCPM-V 2.0, 2.5 and 2.6.

    `MediaItem.pixels` is [sum(h * w), 3 * 14 * 14]: the patches of an overview, then those of its slices, frame after
    frame. `MediaItem.grid` is a row of triples (h, w, count), neighbours of one shape in patches: for a sliced picture
    (h, w, 1) of the overview and (h, w, columns * rows) of the slices. Options: see `MediaOptions`.
    """

    def __init__(self, spec: ModelSpec, tokenizer: Tokenizer) -> None:
        super().__init__(spec, tokenizer)
        config = self._config = MiniCPMVConfig.from_spec(spec)
        self._slicer = Slicer(config.scale_resolution, config.vision.patch_size)
        names = spec.preprocessor_config
        self._image = self.control_token(names.get("im_start", "<image>"))
        self._image_end = self.control_token(names.get("im_end", "</image>"))
        self._slice = self.control_token(names.get("slice_start", "<slice>"))
        self._slice_end = self.control_token(names.get("slice_end", "</slice>"))
        self._unk = self.control_token(names.get("unk", "<unk>"))
        self._id_marks = names.get("im_id_start", "<image_id>"), names.get("im_id_end", "</image_id>")
        self._newline = self._between(self._image_end, "\n", self._image)
        self._modality_of: dict[int, Modality] = {self._image: "image", self._slice: "video"}
        if config.version == (2, 0):
            self.chat_template = _TEMPLATE_2_0
        stops = (tokenizer.token_to_id(name) for name in _STOP_TOKENS[config.version])
        self.stop_token_ids = tuple(token_id for token_id in stops if token_id is not None)

    def _between(self, left: int, text: str, right: int) -> list[int]:
        """Ids of `text` where it stands between two control tokens."""
        marks = (self.tokenizer.id_to_token(left), self.tokenizer.id_to_token(right))
        return self.tokenizer.encode(f"{marks[0]}{text}{marks[1]}", add_special_tokens=False)[1:-1]

    # ------------------------------------------------------------------------------------------ the contract

    def check_options(self, options: Mapping[str, Any]) -> None:
        self._numbers_images(MediaOptions.parse(options))

    @property
    def size_option(self) -> SizeOption:
        """Slices of a picture or a frame."""
        return SizeOption("max_slice_nums", 1, MOST_SLICES)

    def placeholder(self, modality: Modality) -> str:
        """`<image>` or `<slice>`: see the module."""
        token_id = self._image if modality == "image" else self._slice
        return self.tokenizer.id_to_token(token_id) or ""

    def normalize_prompt(self, text: str) -> str:
        """The model cards' spellings become single tokens."""
        for modality, spelling in _SPELLINGS.items():
            text = text.replace(spelling, self.placeholder(modality))
        return text

    def sample_frames(self, num_frames: int, fps: float, options: Mapping[str, Any]) -> FrameSample:
        """One frame a second, at most 64, unless the options say otherwise."""
        indices = MediaOptions.parse(options).frame_indices(num_frames, fps)
        return FrameSample(indices, len(indices) / num_frames * fps)

    def plan(self, modality: Modality, size: tuple[int, int, int], options: Mapping[str, Any]) -> ItemPlan:
        """A picture or frame is a grid of slices beside an overview, or an overview alone.

        Slices and overview are both made of the picture as it came, so it is then decoded at its own size.
        """
        num_frames, height, width = size
        default = self._config.max_slice_nums if modality == "image" else VIDEO_MAX_SLICES
        most = MediaOptions.parse(options).max_slice_nums or default
        resized, tiles, overview = self._slicer.plan(width, height, most).cuts
        tokens = self._frame_tokens(tiles, has_overview=overview is not None)
        return ItemPlan(
            modality,
            (height, width),
            resized if overview is None else (height, width),
            resized,
            num_frames * (len(tokens.ids) + len(self._newline)) - len(self._newline),
            num_frames * sum(tokens.is_embed),
            num_frames,
            tiles,
            overview,
        )

    def num_label_tokens(self, places: Sequence[Modality], options: Mapping[str, Any]) -> int:
        """`<image_id>0</image_id>` and so on, where images are numbered."""
        if not self._numbers_images(MediaOptions.parse(options)):
            return 0
        return sum(len(self._image_id(index)) for index in range(places.count("image")))

    def build(self, token_ids: Sequence[int], media: Sequence[Media], options: Mapping[str, Any]) -> Prompt:
        """Expand the placeholders and preprocess `media`. See `Processor.build`."""
        self._check_is_unexpanded(token_ids)
        places = [self._modality_of[token_id] for token_id in token_ids if token_id in self._modality_of]
        waiting = iter(self.in_prompt_order(places, media, _SPELLINGS.__getitem__))
        numbers_images = self._numbers_images(MediaOptions.parse(options))
        expanded: list[int] = []
        items: list[MediaItem] = []
        num_images = 0
        for token_id in token_ids:
            modality = self._modality_of.get(token_id)
            if modality is None:
                expanded.append(token_id)
                continue
            if modality == "image" and numbers_images:
                expanded += self._image_id(num_images)
            num_images += modality == "image"
            found = next(waiting)
            item, tokens = self._item(found, len(expanded), self.plan_of(found, options))
            expanded += tokens
            items.append(item)
        return Prompt(token_ids=expanded, media=tuple(items))

    # ------------------------------------------------------------------------------------------ its parts

    def _check_is_unexpanded(self, token_ids: Sequence[int]) -> None:
        if self._image_end in token_ids or self._slice_end in token_ids:
            raise RequestError(
                f"the prompt must hold one {self.placeholder('image')} for each image and nothing else of its frame "
                f"(in a text: {_SPELLINGS['image']}); it is expanded here",
                param="messages",
            )

    def _numbers_images(self, options: MediaOptions) -> bool:
        numbers = self._config.use_image_id if options.use_image_id is None else options.use_image_id
        if numbers and any(self.tokenizer.token_to_id(mark) is None for mark in self._id_marks):
            raise RequestError("mm_processor_kwargs: use_image_id needs a tokenizer that knows it (version 2.6)",
                               param="mm_processor_kwargs")  # fmt: skip
        return numbers

    def _image_id(self, index: int) -> list[int]:
        start, end = self._id_marks
        return self.tokenizer.encode(f"{start}{index}{end}", add_special_tokens=False)

    def _item(self, media: Media, offset: int, plan: ItemPlan) -> tuple[MediaItem, list[int]]:
        """The item that stands at `offset` of the prompt, and the tokens there."""
        frames = media.pixels[None] if isinstance(media, Image) else media.frames
        rows = np.concatenate([self._slicer.cut(frame, plan.resized, plan.tiles, plan.overview) for frame in frames])
        one, tokens = self._frame_tokens(plan.tiles, has_overview=plan.overview is not None), _Tokens()
        for index in range(len(frames)):
            if index:
                tokens.add(self._newline)
            tokens.ids += one.ids
            tokens.is_embed += one.is_embed
        grid = self._grid(plan, len(frames))
        span = Span(offset, len(tokens.ids), tuple(tokens.is_embed))
        return MediaItem(media.modality, self._hash(media.modality, rows, grid), span, grid, rows), tokens.ids

    def _hash(self, modality: Modality, rows: NDArray[np.uint8], grid: tuple[int, ...]) -> bytes:
        return content_hash(rows, "minicpmv", modality, grid)

    def _grid(self, plan: ItemPlan, num_frames: int) -> tuple[int, ...]:
        patch = self._config.vision.patch_size
        (rows, columns), (height, width) = plan.tiles, plan.resized
        tile = height // rows // patch, width // columns // patch
        if plan.overview is None:
            return (*tile, num_frames)
        overview = plan.overview[0] // patch, plan.overview[1] // patch
        return (*overview, 1, *tile, plan.num_tiles) * num_frames

    def _frame_tokens(self, tiles: tuple[int, int], *, has_overview: bool) -> _Tokens:
        """The tokens of one picture: its overview, then its slices, a line of text for each row of the grid."""
        tokens = _Tokens()
        self._expand_tile(tokens, self._image, self._image_end)
        if not has_overview:  # then the one tile is what stands there
            return tokens
        # Up to 2.5 slices are images within one <slice>; since 2.6 each is a slice.
        is_wrapped = self._config.version < (2, 6)
        marks = (self._image, self._image_end) if is_wrapped else (self._slice, self._slice_end)
        rows, columns = tiles
        if is_wrapped:
            tokens.add([self._slice])
        for row in range(rows):
            if row:
                tokens.add(self._newline)
            for _ in range(columns):
                self._expand_tile(tokens, *marks)
        if is_wrapped:
            tokens.add([self._slice_end])
        return tokens

    def _expand_tile(self, tokens: _Tokens, start: int, end: int) -> None:
        tokens.add([start])
        tokens.add([self._unk] * self._config.num_queries, is_embed=True)
        tokens.add([end])
