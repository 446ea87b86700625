"""Qwen2.5-VL: media and tokens in, `Prompt` out. Sources: transformers' processors and qwen-vl-utils."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trifocal.errors import ConfigError
from trifocal.media.hashing import content_hash
from trifocal.media.media import FrameSample, Image, Media
from trifocal.media.patches import PatchLayout, resize
from trifocal.media.plan import ItemPlan
from trifocal.model_spec import ModelSpec
from trifocal.models.qwen2_5_vl.config import VisionConfig
from trifocal.models.qwen2_5_vl.options import MOST_MIN_PIXELS, MediaOptions, PixelLimits
from trifocal.models.qwen2_5_vl.preprocess import TokenGrid, mrope_positions, smart_resize
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
        pad_ids = {modality: self._token_id(f"{modality}_token_id", token) for modality, token in _PAD_TOKENS.items()}
        self._modality_of = {pad: modality for modality, pad in pad_ids.items()}
        start = tokenizer.id_to_token(self._token_id("vision_start_token_id", "<|vision_start|>"))
        end = tokenizer.id_to_token(self._token_id("vision_end_token_id", "<|vision_end|>"))
        self._placeholders = {
            modality: f"{start}{tokenizer.id_to_token(pad)}{end}" for modality, pad in pad_ids.items()
        }

    def _token_id(self, field: str, name: str) -> int:
        value = self.spec.hf_config.get(field)
        if value is None:
            return self.control_token(name)
        if type(value) is not int or not 0 <= value < self.tokenizer.vocab_size:
            raise ConfigError(f"config.json: {field} must be the id of a token, got {value!r}")
        return value

    def check_options(self, options: Mapping[str, Any]) -> None:
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

    def plan(self, modality: Modality, size: tuple[int, int, int], options: Mapping[str, Any]) -> ItemPlan:
        """One size for the whole item: it is decoded to what the tower sees."""
        resized = self._size(modality, *size, MediaOptions.parse(options))
        t, h, w = self._layout.grid(size[0], *resized)
        num_tokens = t * h * w // self._layout.merge**2
        return ItemPlan(modality, size[1:], resized, resized, num_tokens, num_tokens, num_frames=size[0])

    def build(self, token_ids: Sequence[int], media: Sequence[Media], options: Mapping[str, Any]) -> Prompt:
        """Expand the placeholders, preprocess `media`, compute positions. See `Processor.build`."""
        places = [self._modality_of[token_id] for token_id in token_ids if token_id in self._modality_of]
        ordered = self.in_prompt_order(places, media, _PAD_TOKENS.__getitem__)
        expanded: list[int] = []
        items: list[MediaItem] = []
        grids: list[TokenGrid] = []
        for token_id in token_ids:
            if token_id not in self._modality_of:
                expanded.append(token_id)
                continue
            item = ordered[len(items)]
            plan = self.plan_of(item, options)
            patches = self._patches(item, plan)
            span = Span(len(expanded), plan.num_tokens)
            expanded.extend([token_id] * span.length)
            items.append(self._item(patches, span))
            t, h, w = patches.grid
            merge = self._layout.merge
            grids.append(TokenGrid(span.offset, t, h // merge, w // merge, patches.second_per_grid))
        positions, delta = mrope_positions(len(expanded), grids, self._tokens_per_second)
        return Prompt(token_ids=expanded, media=tuple(items), positions=positions, position_delta=delta)

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

    def _patches(self, item: Media, plan: ItemPlan) -> _Patches:
        if isinstance(item, Image):
            frames, second_per_grid = item.pixels[None], 0.0
        else:
            frames, second_per_grid = item.frames, self._layout.temporal / item.fps
        if frames.shape[1:3] != plan.resized:
            frames = np.stack([resize(frame, plan.resized) for frame in frames])
        grid = self._layout.grid(len(frames), *plan.resized)
        return _Patches(item.modality, self._layout.patchify(frames), grid, second_per_grid)

    def _item(self, patches: _Patches, span: Span) -> MediaItem:
        # Tokens per second belong in the hash: KV blocks of a clip depend on its positions.
        facts = ("qwen2_5_vl", patches.modality, patches.grid, patches.second_per_grid, self._tokens_per_second)
        return MediaItem(patches.modality, content_hash(patches.rows, *facts), span, patches.grid, patches.rows)
