"""What the model tests share: samples, what a reference can be asked, and a runner of our model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trifocal.attention.base import AttentionBatch, KVCache
from trifocal.attention.reference import ReferenceAttention
from trifocal.distributed import SOLO, Group
from trifocal.families import PROCESSORS
from trifocal.media.media import Image, Media, Video
from trifocal.model_spec import ModelSpec
from trifocal.models.base import Model
from trifocal.models.decoder import Decoder
from trifocal.models.loader import load_model
from trifocal.prompt.processor import Processor
from trifocal.tokenizer import load_tokenizer
from trifocal.types import Prompt

TOLERANCE = 1e-4
WHOLE = 1 << 30  # a chunk that takes any prompt at once


def load_spec(folder: Path) -> ModelSpec:
    """What a folder says."""
    return ModelSpec.from_checkpoint(str(folder))


def load_ours(folder: Path, dtype: torch.dtype = torch.float32, group: Group = SOLO) -> Model:
    """Our model of a folder, or a rank's share of it."""
    return load_model(
        load_spec(folder), dtype=dtype, device=torch.device("cpu"), load_format="auto", seed=0, group=group
    )


def load_processor(folder: Path) -> Processor:
    """Our processor of a folder."""
    spec = load_spec(folder)
    return PROCESSORS.get(spec.architecture)(spec, load_tokenizer(str(folder)))


def relative_error(ours: Tensor, reference: Tensor) -> float:
    """Largest difference over the largest reference value."""
    return float((ours - reference).abs().max() / reference.abs().max())


# ------------------------------------------------------------------------------------------------- samples


@dataclass(frozen=True)
class Sample:
    """A prompt as our processor lays it out, and its media as they were, in order of their places."""

    prompt: Prompt
    media: tuple[Media, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens, those of media included."""
        return len(self.prompt.token_ids)

    @property
    def positions(self) -> Tensor:
        """int64 [rows, num_tokens]."""
        if self.prompt.positions is None:
            return torch.arange(self.num_tokens)[None]
        return torch.from_numpy(self.prompt.positions)

    @property
    def is_embed(self) -> Tensor:
        """bool [num_tokens]: which tokens take an embedding of some media item."""
        marked = torch.zeros(self.num_tokens, dtype=torch.bool)
        for item in self.prompt.media:
            inside = item.span.is_embed
            marked[item.span.offset : item.span.end] = True if inside is None else torch.tensor(inside)
        return marked

    def followed_by(self, token_ids: Sequence[int]) -> Sample:
        """The same with an answer behind it."""
        prompt, count = self.prompt, self.num_tokens + len(token_ids)
        positions = prompt.positions
        if positions is not None:
            more = np.arange(self.num_tokens, count) + prompt.position_delta
            positions = np.concatenate([positions, np.broadcast_to(more, (len(positions), len(more)))], axis=1)
        return replace(self, prompt=replace(prompt, token_ids=[*prompt.token_ids, *token_ids], positions=positions))


@dataclass(frozen=True)
class Picture:
    """A picture of noise in a sample, sizes in pixels."""

    width: int
    height: int


@dataclass(frozen=True)
class Clip:
    """A clip of noise in a sample, `fps` frames a second."""

    width: int
    height: int
    num_frames: int
    fps: float


# A number stands for so many random tokens of text. Text alone is longer than the tiny LongRoPE's original context, and
# odd sizes come to 17 slices and more tiles: towers that take 8 or 16 at once begin a pass in the midst of a picture.
SAMPLES: dict[str, tuple[int | Picture | Clip, ...]] = {
    "text": (40,),
    "image": (5, Picture(196, 140), 9),
    "small image": (12, Picture(70, 60), 12),
    "images": (3, Picture(56, 56), 4, Picture(308, 168), 4, Picture(140, 280), 4),
    "odd sizes": (2, Picture(220, 110), Picture(330, 340), 1, Picture(190, 120), 3, Picture(900, 10), 2),
    "video": (2, Clip(140, 168, 6, fps=4.0), 6),
    "image and video": (Picture(252, 84), 2, Clip(140, 140, 4, fps=2.0), 6),
    "long text": (150,),
}
TEXTS = ("text", "long text")


def make_sample(processor: Processor, name: str) -> Sample:
    """The sample of this name for a model, the same at every call."""
    rng = np.random.default_rng(list(SAMPLES).index(name))
    token_ids: list[int] = []
    media: list[Media] = []
    for piece in SAMPLES[name]:
        if isinstance(piece, int):
            token_ids += rng.integers(0, 256, piece).tolist()
        elif isinstance(piece, Picture):
            media.append(Image(rng.integers(0, 256, (piece.height, piece.width, 3), dtype=np.uint8)))
        else:
            shape = (piece.num_frames, piece.height, piece.width, 3)
            media.append(Video(rng.integers(0, 256, shape, dtype=np.uint8), piece.fps))
        if not isinstance(piece, int):
            placeholder = processor.placeholder(media[-1].modality)
            token_ids += processor.tokenizer.encode(placeholder, add_special_tokens=False)
    return Sample(processor.build(token_ids, media, {}), tuple(media))


class Reference(ABC):
    """Somebody else's implementation of one checkpoint."""

    @abstractmethod
    def embeds(self, sample: Sample) -> Tensor:
        """[places that take an embedding, hidden_size], of all media together."""

    @abstractmethod
    def logits(self, sample: Sample) -> Tensor:
        """[num_tokens, vocab]."""


# ------------------------------------------------------------------------------------------------- our model


def new_cache(decoder: Decoder, num_blocks: int, block_size: int, dtype: torch.dtype = torch.float32) -> KVCache:
    """A cache full of NaN, so that reading anything unwritten shows."""
    spec = decoder.kv_cache_spec(block_size=block_size, dtype=dtype, cache_dtype=dtype)
    cache: KVCache = ReferenceAttention.allocate(spec, num_blocks, torch.device("cpu"))
    cache.keys.fill_(float("nan"))
    cache.values.fill_(float("nan"))
    return cache


class Runner:
    """Runs samples through our model as a worker would: chunk by chunk, several in one step, blocks out of order.

    `num_tokens` is what its cache has room for over its whole life: no block is used twice.
    """

    def __init__(self, model: Model, *, block_size: int = 16, num_tokens: int = 2048) -> None:
        self.model = model
        num_blocks = num_tokens // block_size
        dtype = model.language_model.norm.weight.dtype
        self.attention = ReferenceAttention(new_cache(model.language_model, num_blocks, block_size, dtype))
        self.free = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(1)).tolist()
        self.block_size = block_size

    def table(self, num_tokens: int) -> list[int]:
        """Blocks for so many tokens."""
        return [self.free.pop() for _ in range(-(-num_tokens // self.block_size))]

    @torch.inference_mode()
    def logits(
        self, samples: Sequence[Sample], chunk: int = WHOLE, *, tables: list[list[int]] | None = None, start: int = 0
    ) -> list[Tensor]:
        """[num_tokens - start, vocab] of each sample; a step takes the next `chunk` tokens of all that have any left.

        What lies before `start` is read from the blocks of `tables`, which an earlier run has filled.
        """
        inputs = [self._embeds(sample) for sample in samples]
        tables = tables or [self.table(sample.num_tokens) for sample in samples]
        outputs: list[list[Tensor]] = [[] for _ in samples]
        for first in range(start, max(sample.num_tokens for sample in samples), chunk):
            active = [index for index, sample in enumerate(samples) if first < sample.num_tokens]
            ends = [min(first + chunk, samples[index].num_tokens) for index in active]
            self._begin([tables[index] for index in active], first, ends)
            embeds = torch.cat([inputs[index][first:end] for index, end in zip(active, ends, strict=True)])
            parts = [samples[index].positions[:, first:end] for index, end in zip(active, ends, strict=True)]
            is_long = self._is_long([(samples[index], end - first) for index, end in zip(active, ends, strict=True)])
            hidden = self.model((embeds,), torch.cat(parts, dim=1), self.attention, is_long)
            logits = self.model.logits(hidden)
            for index, part in zip(active, torch.split(logits, [end - first for end in ends]), strict=True):
                outputs[index].append(part)
        return [torch.cat(parts) for parts in outputs]

    def _is_long(self, parts: list[tuple[Sample, int]]) -> Tensor | None:
        """Which rows of a step are of samples that LongRoPE's long factors are for; a part is a sample and its rows."""
        short = self.model.language_model.config.rope.short_context
        if short is None:
            return None
        return torch.cat([torch.full((count,), sample.num_tokens > short) for sample, count in parts])

    def _begin(self, tables: list[list[int]], first: int, ends: list[int]) -> None:
        width = max(len(table) for table in tables)
        padded = torch.tensor([table + [0] * (width - len(table)) for table in tables])
        slots = []
        for row, end in enumerate(ends):
            where = torch.arange(first, end)
            slots.append(padded[row][where // self.block_size] * self.block_size + where % self.block_size)
        self.attention.begin(AttentionBatch(torch.cat(slots), padded, [end - first for end in ends], ends))

    def _embeds(self, sample: Sample) -> Tensor:
        token_ids, media = torch.tensor(sample.prompt.token_ids), []
        if sample.media:
            media = [(sample.is_embed.nonzero()[:, 0], torch.cat(self.model.encode(sample.prompt.media)))]
        (embeds,) = self.model.merge(token_ids, media)
        return embeds
