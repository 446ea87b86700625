"""Training batches: a seeded mixture of samples, packed into padded tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from tools.demo_model.grounding import COLUMNS
from tools.demo_model.preprocess import frames_to_patches, image_to_patches
from tools.demo_model.questions import Exchange
from tools.demo_model.samples import Sample, make_sample, pick_exchanges
from tools.demo_model.sequences import IGNORED, Media, Part, TokenRow, chat_row, grove_row, tree_row
from tools.demo_model.smalltalk import small_talk
from tools.demo_model.tokenizer import DEFAULT_SYSTEM, SYSTEMS

# Share of each kind of sample: at first mostly small pictures of two shapes, where a question must find what it is
# about; then, over CURRICULUM_STEPS, more and more of everything.
EASY = {"single": 0.18, "pair": 0.55, "group": 0.15, "text": 0.05, "images": 0.02, "clip": 0.02, "talk": 0.03}
FULL = {"single": 0.07, "pair": 0.27, "group": 0.42, "text": 0.11, "images": 0.07, "clip": 0.04, "talk": 0.02}
EASY_STEPS, CURRICULUM_STEPS = 500, 400
MAX_EXCHANGES = 7
_GROVE_TOKENS, _QUESTION_TOKENS = 260, 20  # about as long as the longest of the other rows; a question with its answer


@dataclass(frozen=True)
class Batch:
    """Padded rows. B rows of L tokens, P patch rows, M media items.

    ids, labels [B, L]; positions [3, B, L]; visible [B, 1, L, L] bool; pixels [P, 1176]; grids [M, 3];
    sources: for each media token of the rows, which of the M items' tokens it shows;
    kinds: the kind of every answer, in the order of `answers` (row, begin, end).
    """

    ids: Tensor
    labels: Tensor
    positions: Tensor
    visible: Tensor
    is_media: Tensor
    sources: Tensor
    pixels: Tensor
    grids: Tensor
    grounds: Tensor
    answers: tuple[tuple[int, int, int], ...]
    kinds: tuple[str, ...]


def media_of(sample: Sample) -> list[Media]:
    if sample.frames:
        return [Media(frames_to_patches(sample.frames), 2 / sample.fps, *sample.labels)]
    labels = sample.labels or (None,) * len(sample.images)
    return [Media(image_to_patches(image), None, each) for image, each in zip(sample.images, labels, strict=True)]


def _system(rng: Random) -> str:
    return DEFAULT_SYSTEM if rng.random() < 0.85 else rng.choice(SYSTEMS)


def _loose(rng: Random, question: str) -> str:
    """The question as a hurried user types it, now and then."""
    if rng.random() < 0.1:
        question = question[0].lower() + question[1:]
    if rng.random() < 0.1:
        question = question.rstrip("?.")
    return question


def sample_row(rng: Random, tokenizer: Tokenizer, sample: Sample) -> tuple[TokenRow, list[Exchange]]:
    """One row about one sample: single-turn chats side by side, or one chat of several turns."""
    media, system = media_of(sample), _system(rng)
    chosen = pick_exchanges(rng, sample.exchanges, MAX_EXCHANGES)
    pairs = [(_loose(rng, exchange.question), exchange.answer) for exchange in chosen]
    fate = rng.random()
    if fate < 0.35:
        return tree_row(tokenizer, media, pairs, system), chosen
    # The question first, then the media. A quarter of the held-out questions come this way, and it is harder to learn.
    if fate < 0.7:
        count = max(1, _GROVE_TOKENS // (_QUESTION_TOKENS + sum(item.patches.num_tokens for item in media)))
        return grove_row(tokenizer, media, pairs[:count], system), chosen[:count]
    if fate < 0.85:  # the following turns are text
        chosen, pairs = chosen[:4], pairs[:4]
        first: list[Part] = [pairs[0][0], *media]
    else:
        first = [*media, pairs[0][0]]
    turns: list[tuple[list[Part], str]] = [(first, pairs[0][1])]
    turns += [([question], answer) for question, answer in pairs[1:]]
    return chat_row(tokenizer, turns, system), chosen


def talk_row(rng: Random, tokenizer: Tokenizer) -> tuple[TokenRow, list[Exchange]]:
    chosen = [small_talk(rng) for _ in range(4)]
    pairs = [(_loose(rng, exchange.question), exchange.answer) for exchange in chosen]
    if rng.random() < 0.7:
        return tree_row(tokenizer, [], pairs, _system(rng)), chosen
    return chat_row(tokenizer, [([question], answer) for question, answer in pairs[:3]], _system(rng)), chosen[:3]


def pack(rows: Sequence[TokenRow], kinds: Sequence[str], multiple: int = 16) -> Batch:
    """Pad on the right; a padded query sees itself only, so that no softmax is empty."""
    length = -(-max(len(row) for row in rows) // multiple) * multiple
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    labels = torch.full((len(rows), length), IGNORED)
    positions = torch.zeros(3, len(rows), length, dtype=torch.long)
    branches = torch.full((len(rows), length), -1)
    is_media = torch.zeros(len(rows), length, dtype=torch.bool)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row.ids)
        labels[number, : len(row)] = torch.tensor(row.labels)
        positions[:, number, : len(row)] = torch.tensor(row.positions).T
        branches[number, : len(row)] = torch.tensor(row.branches)
        pads = {row.tokenizer.token_to_id(media.pad) for media in row.media}
        for pad in pads:
            is_media[number] |= ids[number] == pad
    seen = (branches[:, None, :] == 0) | (branches[:, None, :] == branches[:, :, None])
    visible = seen & torch.ones(length, length, dtype=torch.bool).tril()
    visible &= (branches[:, :, None] >= 0) | torch.eye(length, dtype=torch.bool)
    media, sources = _distinct([item for row in rows for item in row.media])
    labelled = [item.labels for item in media if item.labels is not None]
    grounds = np.concatenate(labelled) if labelled else np.zeros((0, len(COLUMNS)), np.int64)
    pixels = np.concatenate([item.patches.rows for item in media]) if media else np.zeros((0, 1176), np.float32)
    grids = torch.tensor([item.patches.grid for item in media], dtype=torch.long).reshape(-1, 3)
    answers = tuple((number, begin, end) for number, row in enumerate(rows) for begin, end in row.answers)
    return Batch(ids, labels, positions, visible[:, None], is_media, sources, torch.from_numpy(pixels), grids,
                 torch.from_numpy(grounds), answers, tuple(kinds))  # fmt: skip


def _distinct(media: Sequence[Media]) -> tuple[list[Media], Tensor]:
    """Media without repetitions, and for each token of all of them its place among theirs, [media tokens]."""
    firsts: dict[int, int] = {}
    distinct: list[Media] = []
    sources, count = [torch.zeros(0, dtype=torch.long)], 0
    for item in media:
        num_tokens = item.patches.num_tokens
        if id(item) not in firsts:
            firsts[id(item)] = count
            distinct.append(item)
            count += num_tokens
        sources.append(torch.arange(num_tokens) + firsts[id(item)])
    return distinct, torch.cat(sources)


@dataclass(frozen=True)
class VisionBatch:
    """Media without text, for the first phase: pixels [P, 1176], grids [M, 3], grounds [media tokens, columns]."""

    pixels: Tensor
    grids: Tensor
    grounds: Tensor


# Share of each kind of picture in the first phase.
LOOKING = {"single": 0.1, "pair": 0.22, "group": 0.34, "text": 0.22, "clip": 0.12}


def vision_batch(seed: int | str, step: int, size: int) -> VisionBatch:
    """Pictures with their labels only: a pure function of seed and step."""
    rng = Random(f"look-{seed}-{step}")
    media = [
        item
        for kind in rng.choices(tuple(LOOKING), tuple(LOOKING.values()), k=size)
        for item in media_of(make_sample(rng, kind, ease=0.6))
    ]
    return VisionBatch(
        torch.from_numpy(np.concatenate([item.patches.rows for item in media])),
        torch.tensor([item.patches.grid for item in media], dtype=torch.long),
        torch.from_numpy(np.concatenate([item.labels for item in media if item.labels is not None])),
    )


def training_batch(seed: int, step: int, size: int, tokenizer: Tokenizer) -> Batch:
    """The batch of a step: a pure function of seed and step, so that a resumed run sees the same data."""
    rng = Random(f"train-{seed}-{step}")
    progress = min(1.0, max(0, step - EASY_STEPS) / CURRICULUM_STEPS)
    weights = [EASY[kind] * (1 - progress) + FULL[kind] * progress for kind in FULL]
    rows, kinds = [], []
    for kind in rng.choices(tuple(FULL), weights, k=size):
        if kind == "talk":
            row, chosen = talk_row(rng, tokenizer)
        else:
            row, chosen = sample_row(rng, tokenizer, make_sample(rng, kind, ease=0.9 * (1 - progress)))
        rows.append(row)
        kinds += [exchange.kind for exchange in chosen]
    return pack(rows, kinds)
