"""What the model tests share: transformers as the oracle, positions by the original rule, a runner of our model."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tests import tiny
from trifocal.attention.base import AttentionBatch, KVCache
from trifocal.attention.reference import ReferenceAttention
from trifocal.model_spec import ModelSpec
from trifocal.models.base import Model
from trifocal.models.loader import load_model
from trifocal.types import MediaItem, Span

MERGE, PATCH_BYTES, TOKENS_PER_SECOND = 2, 1176, 2


@dataclass
class Sample:
    """A prompt with media: ids, positions [3, n] (original rule: vLLM, 4.49), items in order of their spans."""

    token_ids: list[int] = field(default_factory=list)
    items: list[MediaItem] = field(default_factory=list)
    columns: list[tuple[int, int, int]] = field(default_factory=list)

    @property
    def positions(self) -> Tensor:
        """int64 [3, num_tokens]."""
        return torch.tensor(self.columns).T.contiguous()

    def text(self, rng: np.random.Generator, count: int) -> Sample:
        """Append `count` random ordinary tokens."""
        for token_id in rng.integers(0, 256, count).tolist():
            self._token(token_id)
        return self

    def media(
        self, rng: np.random.Generator, grid: tuple[int, int, int], *, video: bool = False, seconds: float = 1.0
    ) -> Sample:
        """Append start marker, pads of an item with random pixels, end marker. `seconds` passes per temporal step."""
        ids = tiny.token_ids()
        self._token(ids["<|vision_start|>"])
        t, h, w = grid[0], grid[1] // MERGE, grid[2] // MERGE
        start = self._next()
        offset = len(self.token_ids)
        for step in range(t):
            time = int(step * seconds * TOKENS_PER_SECOND) if video else 0
            self.columns += [(start + time, start + row, start + column) for row in range(h) for column in range(w)]
        self.token_ids += [ids["<|video_pad|>" if video else "<|image_pad|>"]] * (t * h * w)
        pixels = rng.integers(0, 256, (int(np.prod(grid)), PATCH_BYTES), dtype=np.uint8)
        span = Span(offset, t * h * w)
        self.items.append(MediaItem("video" if video else "image", rng.bytes(16), span, grid, pixels))
        self._token(ids["<|vision_end|>"])
        return self

    def _next(self) -> int:
        return max((max(column) for column in self.columns), default=-1) + 1

    def _token(self, token_id: int) -> None:
        self.columns.append((self._next(),) * 3)
        self.token_ids.append(token_id)


def load_ours(folder: Path, dtype: torch.dtype = torch.float32) -> Model:
    """Our model of a folder."""
    spec = ModelSpec.from_checkpoint(str(folder))
    return load_model(spec, dtype=dtype, device=torch.device("cpu"), load_format="auto", seed=0)


def load_reference(folder: Path, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """transformers' model of a folder, eager attention. Raises if a weight was missing or left over."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    model, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"], report
    return model.eval()


def normalized(items: list[MediaItem]) -> Tensor:
    """float32 pixel_values as transformers' PIL image processor makes them: scale in float64, then mean and std."""
    pixels = np.concatenate([np.asarray(item.pixels) for item in items])
    mean = np.repeat(np.array(tiny.IMAGE_MEAN, np.float32), PATCH_BYTES // 3)
    std = np.repeat(np.array(tiny.IMAGE_STD, np.float32), PATCH_BYTES // 3)
    scaled = (pixels.astype(np.float64) * (1 / 255)).astype(np.float32)
    return torch.from_numpy((scaled - mean) / std)


@torch.inference_mode()
def reference_logits(model: torch.nn.Module, sample: Sample) -> Tensor:
    """[num_tokens, vocab] of the oracle, positions given from outside (its own are wrong after a video)."""
    inputs: dict[str, Tensor] = {}
    for modality, name in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        items = [item for item in sample.items if item.modality == modality]
        if items:
            inputs[name] = normalized(items).to(model.dtype)
            inputs[f"{modality}_grid_thw"] = torch.tensor([item.grid for item in items])
    out = model(
        input_ids=torch.tensor([sample.token_ids]), position_ids=sample.positions[:, None], use_cache=False, **inputs
    )
    return out.logits[0]


def new_cache(model: Model, spec_heads: tuple[int, int, int], num_blocks: int, block_size: int) -> KVCache:
    """A cache full of NaN, so that reading anything unwritten shows. `spec_heads`: layers, kv heads, head_dim."""
    layers, kv_heads, head_dim = spec_heads
    dtype = next(model.parameters()).dtype
    cache = KVCache.allocate(
        (layers, num_blocks, block_size, kv_heads, head_dim), dtype=dtype, device=torch.device("cpu")
    )
    cache.keys.fill_(float("nan"))
    cache.values.fill_(float("nan"))
    return cache


class Runner:
    """Runs samples through our model as a worker would: chunk by chunk, several in one step, blocks out of order."""

    def __init__(self, model: Model, *, kv_heads: int, block_size: int = 16, num_blocks: int = 96) -> None:
        self.model = model
        heads = (tiny.LAYERS, kv_heads, tiny.HEAD_DIM)
        self.attention = ReferenceAttention(new_cache(model, heads, num_blocks, block_size))
        self.free = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(1)).tolist()
        self.block_size = block_size

    @torch.inference_mode()
    def logits(self, samples: list[Sample], chunk: int = 1 << 30) -> list[Tensor]:
        """[num_tokens, vocab] of each sample; every step takes the next `chunk` tokens of all that have any left."""
        inputs = [self._embeds(sample) for sample in samples]
        tables = [self._table(len(sample.token_ids)) for sample in samples]
        outputs: list[list[Tensor]] = [[] for _ in samples]
        longest = max(len(sample.token_ids) for sample in samples)
        for start in range(0, longest, chunk):
            active = [index for index, sample in enumerate(samples) if start < len(sample.token_ids)]
            ends = [min(start + chunk, len(samples[index].token_ids)) for index in active]
            self._step(samples, inputs, tables, outputs, active, start, ends)
        return [torch.cat(parts) for parts in outputs]

    def _step(
        self,
        samples: list[Sample],
        inputs: list[Tensor],
        tables: list[list[int]],
        outputs: list[list[Tensor]],
        active: list[int],
        start: int,
        ends: list[int],
    ) -> None:
        width = max(len(tables[index]) for index in active)
        padded = torch.tensor([tables[index] + [0] * (width - len(tables[index])) for index in active])
        where = [torch.arange(start, end) for end in ends]
        slots = [
            padded[row][position // self.block_size] * self.block_size + position % self.block_size
            for row, position in enumerate(where)
        ]
        lengths = [end - start for end in ends]
        self.attention.begin(AttentionBatch(torch.cat(slots), padded, lengths, ends))
        embeds = torch.cat([inputs[index][start:end] for index, end in zip(active, ends, strict=True)])
        positions = torch.cat([samples[i].positions[:, start:e] for i, e in zip(active, ends, strict=True)], dim=1)
        logits = self.model.logits(self.model(embeds, positions, self.attention))
        for index, part in zip(active, torch.split(logits, lengths), strict=True):
            outputs[index].append(part)

    def _embeds(self, sample: Sample) -> Tensor:
        embeds = self.model.embed(torch.tensor(sample.token_ids)).clone()
        if sample.items:
            for item, encoded in zip(sample.items, self.model.encode(sample.items), strict=True):
                embeds[item.span.offset : item.span.end] = encoded
        return embeds

    def _table(self, num_tokens: int) -> list[int]:
        return [self.free.pop() for _ in range(-(-num_tokens // self.block_size))]


def relative_error(ours: Tensor, reference: Tensor) -> float:
    """Largest difference over the largest reference value."""
    return float((ours - reference).abs().max() / reference.abs().max())
