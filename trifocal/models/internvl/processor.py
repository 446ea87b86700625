"""InternVL: media and tokens in, `Prompt` out. Sources: the models' README, transformers' InternVLProcessor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trifocal.media.hashing import content_hash
from trifocal.media.media import FrameSample, Image, Media
from trifocal.media.patches import PatchLayout, resize
from trifocal.media.plan import ItemPlan
from trifocal.model_spec import ModelSpec
from trifocal.models.internvl.config import NATIVE, VisionConfig
from trifocal.models.internvl.options import MOST_TILES, MediaOptions
from trifocal.models.internvl.tiling import choose_tiles, cut
from trifocal.prompt.processor import Processor, SizeOption
from trifocal.tokenizer import Tokenizer
from trifocal.types import MediaItem, Modality, Prompt, Span

_START, _END, _CONTEXT, _VIDEO = "<img>", "</img>", "<IMG_CONTEXT>", "<video>"
_TURN_ENDS = ("<|im_end|>", "<|end|>", "<|eot_id|>")


class InternVLProcessor(Processor):
    """Preprocessing of InternVL.

    Before expansion one `<IMG_CONTEXT>` stands for a picture, and for a clip `<video>` where the tokenizer has that
    token, else an empty pair `<img></img>`. Raw prompts may say `<image>` and `<video>`, as the models' README does.

    Options: `min_dynamic_patch`, `max_dynamic_patch`, `dynamic_image_size` (or `min_patches`, `max_patches`,
    `crop_to_patches`), `use_thumbnail`; `num_frames`, `fps`.
    """

    def __init__(self, spec: ModelSpec, tokenizer: Tokenizer) -> None:
        super().__init__(spec, tokenizer)
        self._vision = VisionConfig.from_spec(spec)
        self._layout = PatchLayout(patch=self._vision.patch_size, merge=1, temporal=1)
        self._checkpoint = MediaOptions.of_checkpoint(spec)
        self._start, self._end, self._context = (self.control_token(name) for name in (_START, _END, _CONTEXT))
        self._video = tokenizer.token_to_id(_VIDEO)
        ends = [tokenizer.token_to_id(name) for name in _TURN_ENDS]
        self.stop_token_ids = tuple(token_id for token_id in ends if token_id is not None)

    def check_options(self, options: Mapping[str, Any]) -> None:
        MediaOptions.parse(options).tiles(self._checkpoint)

    @property
    def size_option(self) -> SizeOption:
        """Tiles of a picture; a frame is always one."""
        return SizeOption("max_dynamic_patch", 1, MOST_TILES)

    def placeholder(self, modality: Modality) -> str:
        """`<IMG_CONTEXT>`; for a clip `<video>` or `<img></img>`."""
        if modality == "image":
            return _CONTEXT
        return f"{_START}{_END}" if self._video is None else _VIDEO

    def normalize_prompt(self, text: str) -> str:
        """`<image>` and `<video>` of a raw prompt as the placeholders that they stand for."""
        text = text.replace(_VIDEO, self.placeholder("video"))
        return text.replace("<image>", self.placeholder("image"))

    def sample_frames(self, num_frames: int, fps: float, options: Mapping[str, Any]) -> FrameSample:
        """The middle frame of each of so many equal segments: by the README's rounding, or transformers'.

        A clip of no more frames than segments is taken whole, where the README would repeat some.
        """
        count = MediaOptions.parse(options).num_sampled(num_frames, fps)
        if self.spec.architecture == NATIVE or count == num_frames:
            chosen = (np.arange(count) + 0.5) * (num_frames / count)
        else:
            segment = (num_frames - 1) / count
            chosen = segment / 2 + np.round(segment * np.arange(count))
        return FrameSample(np.minimum(chosen.astype(np.int64), num_frames - 1), count / num_frames * fps)

    def plan(self, modality: Modality, size: tuple[int, int, int], options: Mapping[str, Any]) -> ItemPlan:
        """A frame is one tile. A picture is a grid of tiles, and a thumbnail where there are several.

        A thumbnail is made of the picture as it came, so such a picture is decoded at its own size.
        """
        tile, per_tile = self._vision.tile_size, self._vision.tokens_per_tile
        num_frames, came = size[0], size[1:]
        if modality == "video":
            num_embeds = num_frames * per_tile
            num_tokens = num_embeds + sum(len(self._frame_name(index)) + 2 for index in range(num_frames))
            return ItemPlan(modality, came, (tile, tile), (tile, tile), num_tokens, num_embeds, num_frames)
        limits = MediaOptions.parse(options).tiles(self._checkpoint)
        rows, columns, has_thumbnail = choose_tiles(*came, tile, limits)
        resized = rows * tile, columns * tile
        num_embeds = (rows * columns + has_thumbnail) * per_tile
        return ItemPlan(
            modality,
            came,
            came if has_thumbnail else resized,
            resized,
            num_embeds + 2,
            num_embeds,
            tiles=(rows, columns),
            overview=(tile, tile) if has_thumbnail else None,
        )

    def build(self, token_ids: Sequence[int], media: Sequence[Media], options: Mapping[str, Any]) -> Prompt:
        """Expand the placeholders, preprocess `media`. See `Processor.build`; positions are plain."""
        expanded: list[int] = []
        items: list[MediaItem] = []
        pieces = self._pieces(token_ids)
        places = [piece for piece in pieces if not isinstance(piece, int)]
        waiting = iter(self.in_prompt_order(places, media, "<{}>".format))
        for piece in pieces:
            if isinstance(piece, int):
                expanded.append(piece)
                continue
            item = next(waiting)
            plan = self.plan_of(item, options)
            tokens, is_embed = self._tokens(plan)
            first, end = is_embed.index(True), len(is_embed) - is_embed[::-1].index(True)
            inside = tuple(is_embed[first:end])
            span = Span(len(expanded) + first, end - first, None if all(inside) else inside)
            expanded += tokens
            items.append(self._item(item, self._tiles(item, plan), span))
        return Prompt(token_ids=expanded, media=tuple(items))

    def _pieces(self, token_ids: Sequence[int]) -> list[int | Modality]:
        """The prompt with each placeholder as the name of what it stands for."""
        pieces: list[int | Modality] = []
        for token_id in token_ids:
            if token_id == self._context:
                pieces.append("image")
            elif token_id == self._video:
                pieces.append("video")
            elif token_id == self._end and self._video is None and pieces and pieces[-1] == self._start:
                pieces[-1] = "video"
            else:
                pieces.append(token_id)
        return pieces

    def _tiles(self, item: Media, plan: ItemPlan) -> NDArray[np.uint8]:
        """[tiles, tile_size, tile_size, 3]."""
        if isinstance(item, Image):
            return cut(item.pixels, self._vision.tile_size, plan.tiles, has_thumbnail=plan.overview is not None)
        return np.stack([resize(frame, plan.resized) for frame in item.frames])

    def _tokens(self, plan: ItemPlan) -> tuple[list[int], list[bool]]:
        """The tokens of an item, and which of them take embeddings."""
        if plan.modality == "image":
            parts: list[tuple[list[int], int]] = [([], plan.num_embeds)]
        else:
            parts = [(self._frame_name(index), self._vision.tokens_per_tile) for index in range(plan.num_frames)]
        tokens: list[int] = []
        for name, count in parts:
            tokens += [*name, self._start, *[self._context] * count, self._end]
        return tokens, [token_id == self._context for token_id in tokens]

    def _frame_name(self, index: int) -> list[int]:
        """`Frame1: `, a line for each frame."""
        line = "" if index == 0 else "\n"
        return self.tokenizer.encode_plain(f"{line}Frame{index + 1}: ")

    def _item(self, item: Media, tiles: NDArray[np.uint8], span: Span) -> MediaItem:
        rows = self._layout.patchify(tiles)
        grid = (len(tiles), self._vision.grid, self._vision.grid)
        return MediaItem(item.modality, content_hash(rows, "internvl", item.modality, grid), span, grid, rows)
