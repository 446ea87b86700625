"""InternVL: media and tokens in, `Prompt` out. Sources: the models' README, transformers' InternVLProcessor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trifocal.errors import RequestError
from trifocal.media.hashing import content_hash
from trifocal.media.media import FrameSample, Image, Media
from trifocal.media.patches import PatchLayout, resize
from trifocal.model_spec import ModelSpec
from trifocal.models.internvl.config import NATIVE, VisionConfig
from trifocal.models.internvl.options import MOST_TILES, MediaOptions
from trifocal.models.internvl.tiling import choose_grid, cut, num_tiles
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
        """Raise `RequestError` for an option that is unknown or out of range."""
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

    def resized(self, modality: Modality, size: tuple[int, int, int], options: Mapping[str, Any]) -> tuple[int, int]:
        """A frame is one tile, and a picture without a thumbnail is scaled but once: either may come so at once.

        A thumbnail is made of the picture as it came. So is a picture whose tiles would be chosen anew.
        """
        tile = self._vision.tile_size
        if modality == "video":
            return tile, tile
        limits = MediaOptions.parse(options).tiles(self._checkpoint)
        columns, rows = choose_grid(*size[1:], tile, limits)
        scaled = rows * tile, columns * tile
        is_scaled_twice = limits.has_thumbnail and columns * rows > 1
        return size[1:] if is_scaled_twice or choose_grid(*scaled, tile, limits) != (columns, rows) else scaled

    def num_tokens(self, modality: Modality, size: tuple[int, int, int], options: Mapping[str, Any]) -> int:
        """Prompt positions of an item of `size` (frames, height, width), `<img>`, `</img>` and frame names included."""
        if modality == "video":
            return sum(self._vision.tokens_per_tile + 2 + len(self._frame_name(index)) for index in range(size[0]))
        tiles = num_tiles(*size[1:], self._vision.tile_size, MediaOptions.parse(options).tiles(self._checkpoint))
        return tiles * self._vision.tokens_per_tile + 2

    def build(self, token_ids: Sequence[int], media: Sequence[Media], options: Mapping[str, Any]) -> Prompt:
        """Expand the placeholders, preprocess `media`. See `Processor.build`; positions are plain."""
        parsed = MediaOptions.parse(options)
        expanded: list[int] = []
        items: list[MediaItem] = []
        pieces = self._pieces(token_ids)
        for piece, item in zip(pieces, self._in_prompt_order(pieces, media), strict=True):
            if isinstance(piece, int):
                expanded.append(piece)
            elif item is not None:
                tiles = self._tiles(item, parsed if item.options is None else MediaOptions.parse(item.options))
                tokens, places = self._tokens(item, len(tiles))
                first, end = places.index(True), len(places) - places[::-1].index(True)
                inside = tuple(places[first:end])
                span = Span(len(expanded) + first, end - first, None if all(inside) else inside)
                expanded += tokens
                items.append(self._item(item, tiles, span))
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

    def _in_prompt_order(self, pieces: Sequence[int | Modality], media: Sequence[Media]) -> list[Media | None]:
        """For each piece its item: the k-th image placeholder takes the k-th image. None for tokens."""
        modalities: tuple[Modality, ...] = ("image", "video")
        queues = {modality: [item for item in media if item.modality == modality] for modality in modalities}
        for modality, queue in queues.items():
            places, given = list(pieces).count(modality), len(queue)
            if places != given:
                raise RequestError(
                    f"the prompt has {places} {modality} placeholder{'s' * (places != 1)} (<{modality}>) "
                    f"but {given} {modality}{'s' * (given != 1)} came with it",
                    param="messages",
                )
        iterators = {modality: iter(queue) for modality, queue in queues.items()}
        return [None if isinstance(piece, int) else next(iterators[piece]) for piece in pieces]

    def _tiles(self, item: Media, options: MediaOptions) -> NDArray[np.uint8]:
        """[tiles, tile_size, tile_size, 3]."""
        size = self._vision.tile_size
        if isinstance(item, Image):
            return cut(item.pixels, size, options.tiles(self._checkpoint))
        return np.stack([resize(frame, (size, size)) for frame in item.frames])

    def _tokens(self, item: Media, num: int) -> tuple[list[int], list[bool]]:
        """The tokens of an item of `num` tiles, and which of them take embeddings."""
        per_tile = self._vision.tokens_per_tile
        if isinstance(item, Image):
            parts: list[tuple[list[int], int]] = [([], num * per_tile)]
        else:
            parts = [(self._frame_name(index), per_tile) for index in range(num)]
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
