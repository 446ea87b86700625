"""Qwen2.5-VL: media and tokens in, `Prompt` out. Sources: transformers' processors and qwen-vl-utils."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trifocal.errors import ConfigError, RequestError
from trifocal.media.hashing import content_hash
from trifocal.media.media import FrameSample, Image, Media
from trifocal.media.patches import PatchLayout, resize
from trifocal.model_spec import ModelSpec
from trifocal.models.qwen2_5_vl.config import VisionConfig
from trifocal.models.qwen2_5_vl.options import MOST_MIN_PIXELS, MediaOptions, PixelLimits
from trifocal.models.qwen2_5_vl.preprocess import MAX_ASPECT_RATIO, TokenGrid, mrope_positions, smart_resize
from trifocal.prompt.processor import Processor, SizeOption
from trifocal.tokenizer import Tokenizer
from trifocal.types import MediaItem, Modality, Prompt, Span

_PAD_TOKENS: dict[Modality, str] = {"image": "<|image_pad|>", "video": "<|video_pad|>"}


@dataclass(frozen=True, slots=True)
class _Patches:
    """A preprocessed item: rows [t*h*w, 1176], grid in patches, seconds between two temporal grids (0: a picture)."""

    modality: Modality
    rows: NDArray[np.uint8]
    grid: tuple[int, int, int]
    second_per_grid: float


class Qwen2_5_VLProcessor(Processor):
    """Preprocessing of Qwen2.5-VL.

    Options: `min_pixels`, `max_pixels` (or `size` of `shortest_edge`, `longest_edge`), `total_pixels` of a clip,
    `resized_height` and `resized_width`, `fps`, `num_frames`, `min_frames`, `max_frames`.
    """

    def __init__(self, spec: ModelSpec, tokenizer: Tokenizer) -> None:
        super().__init__(spec, tokenizer)
        vision = VisionConfig.from_spec(spec)
        self._layout = PatchLayout(
            patch=vision.patch_size, merge=vision.spatial_merge_size, temporal=vision.temporal_patch_size
        )
        self._tokens_per_second = vision.tokens_per_second
        self._limits = PixelLimits.of_checkpoint(spec.preprocessor_config)
        self._pad_ids: dict[Modality, int] = {
            "image": self._token_id("image_token_id", "<|image_pad|>"),
            "video": self._token_id("video_token_id", "<|video_pad|>"),
        }
        start = tokenizer.id_to_token(self._token_id("vision_start_token_id", "<|vision_start|>"))
        end = tokenizer.id_to_token(self._token_id("vision_end_token_id", "<|vision_end|>"))
        self._placeholders = {
            modality: f"{start}{tokenizer.id_to_token(pad)}{end}" for modality, pad in self._pad_ids.items()
        }

    def _token_id(self, field: str, name: str) -> int:
        value = self.spec.hf_config.get(field)
        if value is None:
            return self.control_token(name)
        if type(value) is not int or not 0 <= value < self.tokenizer.vocab_size:
            raise ConfigError(f"config.json: {field} must be the id of a token, got {value!r}")
        return value

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise `RequestError` for an option that is unknown or out of range."""
        MediaOptions.parse(options)

    @property
    def size_option(self) -> SizeOption:
        """Pixels after resizing, in steps of one token."""
        step = self._layout.factor**2
        return SizeOption("max_pixels", step, MOST_MIN_PIXELS, step)

    def placeholder(self, modality: Modality) -> str:
        """`<|vision_start|><|image_pad|><|vision_end|>` or its like for a clip."""
        return self._placeholders[modality]

    def sample_frames(self, num_frames: int, fps: float, options: Mapping[str, Any]) -> FrameSample:
        """An even number of frames, spread evenly from the first to the last, as in qwen-vl-utils."""
        count = MediaOptions.parse(options).num_sampled(num_frames, fps)
        indices = np.linspace(0, num_frames - 1, count).round().astype(np.int64)
        return FrameSample(indices, count / num_frames * fps)

    def resized(self, modality: Modality, size: tuple[int, int, int], options: Mapping[str, Any]) -> tuple[int, int]:
        """The (height, width) that an item of `size` (frames, height, width) may be scaled to before `build`.

        It is the size that `build` would give it, but for long strips: those could be resized twice, and stay.
        """
        parsed = MediaOptions.parse(options)
        resized = self._size(modality, *size, parsed)
        if max(resized) > MAX_ASPECT_RATIO * min(resized) or self._size(modality, size[0], *resized, parsed) != resized:
            return size[1:]
        return resized

    def num_tokens(self, modality: Modality, size: tuple[int, int, int], options: Mapping[str, Any]) -> int:
        """Prompt positions of an item of `size` (frames, height, width); the frames are the sampled ones."""
        resized = self._size(modality, *size, MediaOptions.parse(options))
        return self._num_tokens(self._layout.grid(size[0], *resized))

    def build(self, token_ids: Sequence[int], media: Sequence[Media], options: Mapping[str, Any]) -> Prompt:
        """Expand the placeholders, preprocess `media`, compute positions. See `Processor.build`."""
        ordered = self._in_prompt_order(token_ids, media)
        parsed = MediaOptions.parse(options)
        pads = set(self._pad_ids.values())
        expanded: list[int] = []
        items: list[MediaItem] = []
        grids: list[TokenGrid] = []
        for token_id in token_ids:
            if token_id not in pads:
                expanded.append(token_id)
                continue
            item = ordered[len(items)]
            patches = self._patches(item, parsed if item.options is None else MediaOptions.parse(item.options))
            span = Span(len(expanded), self._num_tokens(patches.grid))
            expanded.extend([token_id] * span.length)
            items.append(self._item(patches, span))
            t, h, w = patches.grid
            merge = self._layout.merge
            grids.append(TokenGrid(span.offset, t, h // merge, w // merge, patches.second_per_grid))
        positions, delta = mrope_positions(len(expanded), grids, self._tokens_per_second)
        return Prompt(token_ids=expanded, media=tuple(items), positions=positions, position_delta=delta)

    def _in_prompt_order(self, token_ids: Sequence[int], media: Sequence[Media]) -> list[Media]:
        """`media` in the order of the placeholders: the k-th image placeholder takes the k-th image."""
        queues = {modality: [item for item in media if item.modality == modality] for modality in self._pad_ids}
        for modality, pad in self._pad_ids.items():
            places, given = list(token_ids).count(pad), len(queues[modality])
            if places != given:
                raise RequestError(
                    f"the prompt has {places} {modality} placeholder{'s' * (places != 1)} ({_PAD_TOKENS[modality]}) "
                    f"but {given} {modality}{'s' * (given != 1)} came with it",
                    param="messages",
                )
        modality_of = {pad: modality for modality, pad in self._pad_ids.items()}
        iterators = {modality: iter(queue) for modality, queue in queues.items()}
        return [next(iterators[modality_of[token_id]]) for token_id in token_ids if token_id in modality_of]

    def _size(
        self, modality: Modality, num_frames: int, height: int, width: int, options: MediaOptions
    ) -> tuple[int, int]:
        if options.resized_height is not None and options.resized_width is not None:
            height, width = options.resized_height, options.resized_width
            limits = options.image_limits(self._limits)
        elif modality == "image":
            limits = options.image_limits(self._limits)
        else:
            limits = options.frame_limits(self._limits, num_frames)
        return smart_resize(height, width, self._layout.factor, limits)

    def _num_tokens(self, grid: tuple[int, int, int]) -> int:
        return grid[0] * grid[1] * grid[2] // self._layout.merge**2

    def _patches(self, item: Media, options: MediaOptions) -> _Patches:
        if isinstance(item, Image):
            frames, second_per_grid = item.pixels[None], 0.0
        else:
            frames, second_per_grid = item.frames, self._layout.temporal / item.fps
        count, height, width = frames.shape[:3]
        size = self._size(item.modality, count, height, width, options)
        if (height, width) != size:
            frames = np.stack([resize(frame, size) for frame in frames])
        return _Patches(item.modality, self._layout.patchify(frames), self._layout.grid(count, *size), second_per_grid)

    def _item(self, patches: _Patches, span: Span) -> MediaItem:
        # Tokens per second belong in the hash: KV blocks of a clip depend on its positions.
        facts = ("qwen2_5_vl", patches.modality, patches.grid, patches.second_per_grid, self._tokens_per_second)
        return MediaItem(patches.modality, content_hash(patches.rows, *facts), span, patches.grid, patches.rows)
