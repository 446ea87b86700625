"""transformers' native InternVL over every decoder, InternLM2 (which it does not have) as the Llama that it equals."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from tests import tiny_internvl as tiny
from tests.oracle import Reference, Sample
from tests.tiny_text import Text, text_config
from trifocal.types import MediaItem


class InternVLReference(Reference):
    """transformers' model with the weights of `tiny.tensors`, eager attention."""

    def __init__(self, text: Text, vision: tiny.Vision, *, tied: bool = False, seed: int = 0) -> None:
        from transformers import InternVLConfig, InternVLForConditionalGeneration

        settings = tiny.config("llama" if text == "internlm2" else text, vision, "native", tied=tied)
        if text == "internlm2":
            settings["text_config"]["rope_scaling"] = text_config(text)["rope_scaling"]
        config = InternVLConfig(**settings, attn_implementation="eager")
        self.model = InternVLForConditionalGeneration(config).eval()
        weights = tiny.renamed(tiny.tensors(text, vision, tied=tied, seed=seed), text, "native-memory")
        missing, unexpected = self.model.load_state_dict(weights, strict=False)
        assert not unexpected and (not missing or (tied and missing == ["lm_head.weight"])), (missing, unexpected)
        self.model.tie_weights()

    @torch.inference_mode()
    def embeds(self, sample: Sample) -> Tensor:
        """[tiles * TOKENS_PER_TILE, HIDDEN]."""
        return self.tile_embeds(tiles_of(sample.prompt.media))

    def tile_embeds(self, tiles: Tensor) -> Tensor:
        """The same from normalised tiles [tiles, 3, side, side]."""
        return self.model.model.get_image_features(tiles).pooler_output.flatten(0, 1)

    @torch.inference_mode()
    def logits(self, sample: Sample) -> Tensor:
        """[num_tokens, vocab]."""
        inputs = {"pixel_values": tiles_of(sample.prompt.media)} if sample.media else {}
        return self.model(input_ids=torch.tensor([sample.prompt.token_ids]), use_cache=False, **inputs).logits[0]


@cache
def reference(text: Text, vision: tiny.Vision) -> InternVLReference:
    """One for all spellings of the same weights."""
    return InternVLReference(text, vision)


def tiles_of(items: Sequence[MediaItem]) -> Tensor:
    """float32 [tiles, 3, TILE, TILE], normalised as transformers' PIL processor does."""
    rows = np.concatenate([np.asarray(item.pixels) for item in items])
    side, patch = tiny.TILE // tiny.PATCH, tiny.PATCH
    patches = rows.reshape(-1, side, side, 3, patch, patch)
    tiles = patches.transpose(0, 3, 1, 4, 2, 5).reshape(-1, 3, tiny.TILE, tiny.TILE)
    scaled = (tiles.astype(np.float64) * (1 / 255)).astype(np.float32)
    mean, std = (np.array(each, np.float32)[:, None, None] for each in (tiny.IMAGE_MEAN, tiny.IMAGE_STD))
    return torch.from_numpy((scaled - mean) / std)
