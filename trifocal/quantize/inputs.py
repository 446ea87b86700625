"""Calibration samples as the decoder sees them: embeddings of text and of pictures, one behind the other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from trifocal.config.engine import EngineConfig
from trifocal.errors import ConfigError, RequestError
from trifocal.media.fetch.policy import FetchPolicy
from trifocal.models.base import Model
from trifocal.prompt.builder import PromptBuilder
from trifocal.quantize.samples import Sample
from trifocal.types import Prompt

_LONGEST_TEXT = 512  # tokens of one sample without media; a longer one is cut
_LEAST_ROOM = 16


@dataclass(frozen=True)
class Inputs:
    """embeds float32 [tokens, hidden_size], positions int64 [rows, tokens], and the tokens of each sample."""

    embeds: Tensor
    positions: Tensor
    lengths: list[int]


def build_prompts(
    config: EngineConfig, samples: Iterable[Sample], most_tokens: int, chat_template: str | None = None
) -> list[Prompt]:
    """Prompts of as many samples as have room in `most_tokens`. Raises `ConfigError` naming the one that is wrong."""
    builder = PromptBuilder(config, fetch_policy=FetchPolicy.unrestricted(), chat_template=chat_template)
    prompts: list[Prompt] = []
    left = most_tokens
    try:
        for sample in samples:
            if left < _LEAST_ROOM:
                break
            if sample.needs_media and not builder.processor.modalities:
                continue
            prompt = _build(builder, sample)
            if not prompt.media:
                prompt = replace(prompt, token_ids=prompt.token_ids[: min(left, _LONGEST_TEXT)])
            if 1 < len(prompt.token_ids) <= left:
                prompts.append(prompt)
                left -= len(prompt.token_ids)
    finally:
        builder.close()
    if not prompts:
        raise ConfigError(
            f"every calibration sample is longer than {most_tokens} tokens; allow more (--calibration-tokens)"
        )
    return prompts


def _build(builder: PromptBuilder, sample: Sample) -> Prompt:
    try:
        if sample.text is not None:
            return builder.build(sample.text)
        return builder.chat_sync(sample.messages, add_generation_prompt=False)
    except RequestError as error:
        raise ConfigError(f"{sample.where}: {error.message}") from None


@torch.inference_mode()
def embed(model: Model, prompts: list[Prompt], progress: bool) -> Inputs:
    """Run the vision tower and the embedding of `model`."""
    embeds, positions = [], []
    for prompt in tqdm(prompts, desc="Reading samples", unit="sample", disable=None if progress else True):
        rows = model.merge(torch.tensor(prompt.token_ids))[0].float()
        for item in prompt.media:
            place = np.ones(item.span.end - item.span.offset, dtype=bool)
            if item.span.is_embed is not None:
                place = np.asarray(item.span.is_embed, dtype=bool)
            rows[item.span.offset : item.span.end][torch.from_numpy(place)] = model.encode([item])[0].float()
        embeds.append(rows)
        plain = np.arange(len(rows))[None]
        positions.append(torch.from_numpy(plain if prompt.positions is None else prompt.positions[:, : len(rows)]))
    return Inputs(torch.cat(embeds), torch.cat(positions, dim=1), [len(rows) for rows in embeds])
