"""transformers' Qwen2.5-VL, with positions by the original rule: its own are wrong after a video."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tests import tiny
from tests.oracle import Reference, Sample
from trifocal.types import MediaItem

PATCH_BYTES, MERGE, FRAMES_PER_GRID, TOKENS_PER_SECOND = 1176, 2, 2, 2


class Qwen2_5_VLReference(Reference):
    """transformers' model of a folder, eager attention. Raises if a weight was missing or left over."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        from transformers import Qwen2_5_VLForConditionalGeneration

        model, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            folder, dtype=dtype, attn_implementation="eager", output_loading_info=True
        )
        assert not report["missing_keys"] and not report["unexpected_keys"], report
        self.model = model.eval()

    @torch.inference_mode()
    def embeds(self, sample: Sample) -> Tensor:
        """[merged patches of all media, hidden_size]."""
        grids = torch.tensor([item.grid for item in sample.prompt.media])
        return self.model.model.visual(normalized(sample.prompt.media), grid_thw=grids).pooler_output

    @torch.inference_mode()
    def logits(self, sample: Sample) -> Tensor:
        """[num_tokens, vocab]."""
        inputs: dict[str, Tensor] = {}
        for modality, name in (("image", "pixel_values"), ("video", "pixel_values_videos")):
            items = [item for item in sample.prompt.media if item.modality == modality]
            if items:
                inputs[name] = normalized(items).to(self.model.dtype)
                inputs[f"{modality}_grid_thw"] = torch.tensor([item.grid for item in items])
        ids = torch.tensor([sample.prompt.token_ids])
        return self.model(input_ids=ids, position_ids=positions(sample)[:, None], use_cache=False, **inputs).logits[0]


def normalized(items: Sequence[MediaItem]) -> Tensor:
    """float32 pixel_values as transformers' PIL image processor makes them: scale in float64, then mean and std."""
    pixels = np.concatenate([np.asarray(item.pixels) for item in items])
    mean = np.repeat(np.array(tiny.IMAGE_MEAN, np.float32), PATCH_BYTES // 3)
    std = np.repeat(np.array(tiny.IMAGE_STD, np.float32), PATCH_BYTES // 3)
    scaled = (pixels.astype(np.float64) * (1 / 255)).astype(np.float32)
    return torch.from_numpy((scaled - mean) / std)


def positions(sample: Sample) -> Tensor:
    """int64 [3, num_tokens] by the original rule (vLLM, transformers 4.49), token by token."""
    columns: list[tuple[int, int, int]] = []
    for item, media in zip(sample.prompt.media, sample.media, strict=True):
        _add_text(columns, item.span.offset)
        start = _next(columns)
        t, h, w = item.grid[0], item.grid[1] // MERGE, item.grid[2] // MERGE
        for step in range(t):
            seconds = 0.0 if media.modality == "image" else step * FRAMES_PER_GRID / media.fps
            time = start + int(seconds * TOKENS_PER_SECOND)
            columns += [(time, start + row, start + column) for row in range(h) for column in range(w)]
    _add_text(columns, sample.num_tokens)
    return torch.tensor(columns).T.contiguous()


def _add_text(columns: list[tuple[int, int, int]], end: int) -> None:
    while len(columns) < end:
        columns.append((_next(columns),) * 3)


def _next(columns: list[tuple[int, int, int]]) -> int:
    return max((max(column) for column in columns), default=-1) + 1
