"""Chats as token rows: ids, three-axis positions, supervised labels and which turns may see each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tools.demo_model.preprocess import MERGE, Patches
from tools.demo_model.tokenizer import DEFAULT_SYSTEM

IGNORED = -100
TOKENS_PER_SECOND = 2

Position = tuple[int, int, int]


@dataclass(frozen=True)
class Media:
    """A preprocessed picture, or a clip whose temporal grids are `seconds_per_grid` apart."""

    patches: Patches
    seconds_per_grid: float | None = None
    labels: NDArray[np.int64] | None = None  # of each token, for training (grounding.py)

    @property
    def pad(self) -> str:
        return "<|image_pad|>" if self.seconds_per_grid is None else "<|video_pad|>"

    def positions(self, start: int) -> list[Position]:
        """T, H, W of every token, row-major; the original rule: T steps by whole position units of time."""
        t, h, w = self.patches.grid
        step = 0.0 if self.seconds_per_grid is None else self.seconds_per_grid * TOKENS_PER_SECOND
        return [
            (start + int(k * step), start + row, start + column)
            for k in range(t)
            for row in range(h // MERGE)
            for column in range(w // MERGE)
        ]


Part = str | Media


@dataclass
class TokenRow:
    """One training or evaluation sequence. `branches[i]` is 0 for shared context, else the exchange's number."""

    tokenizer: Tokenizer
    ids: list[int] = field(default_factory=list)
    positions: list[Position] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    branches: list[int] = field(default_factory=list)
    media: list[Media] = field(default_factory=list)
    answers: list[tuple[int, int]] = field(default_factory=list)
    branch: int = 0
    next_position: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    def _append(self, ids: Sequence[int], positions: Sequence[Position], is_answer: bool) -> None:
        self.ids += ids
        self.positions += positions
        self.labels += ids if is_answer else [IGNORED] * len(ids)
        self.branches += [self.branch] * len(ids)
        self.next_position = max(max(axes) for axes in positions) + 1 if positions else self.next_position

    def add_text(self, text: str, is_answer: bool = False) -> None:
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        start = self.next_position
        self._append(ids, [(p, p, p) for p in range(start, start + len(ids))], is_answer)

    def add_media(self, media: Media) -> None:
        """The media tokens alone; `add_parts` puts vision_start and vision_end around them."""
        positions = media.positions(self.next_position)
        self.media.append(media)
        pad = self.tokenizer.encode(media.pad, add_special_tokens=False).ids
        self._append(pad * len(positions), positions, False)

    def add_parts(self, parts: Sequence[Part]) -> None:
        """Text and media in order. Adjacent text is tokenized as one piece, as a rendered prompt would be."""
        text = ""
        for part in parts:
            if isinstance(part, str):
                text += part
                continue
            self.add_text(text + "<|vision_start|>")
            self.add_media(part)
            text = "<|vision_end|>"
        if text:
            self.add_text(text)

    def add_answer(self, answer: str) -> None:
        """The supervised part: the answer and the stop token, and nothing else."""
        begin = len(self)
        self.add_text(answer + "<|im_end|>", is_answer=True)
        self.answers.append((begin, len(self)))


def opening(system: str = DEFAULT_SYSTEM) -> str:
    return f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n"


TO_ANSWER = "<|im_end|>\n<|im_start|>assistant\n"
NEXT_TURN = "\n<|im_start|>user\n"


def chat_row(
    tokenizer: Tokenizer, turns: Sequence[tuple[Sequence[Part], str]], system: str = DEFAULT_SYSTEM
) -> TokenRow:
    """A chat: every turn sees all turns before it."""
    row = TokenRow(tokenizer)
    for number, (parts, answer) in enumerate(turns):
        row.add_parts([NEXT_TURN if number else opening(system), *parts, TO_ANSWER])
        row.add_answer(answer)
    return row


def tree_row(
    tokenizer: Tokenizer, media: Sequence[Media], exchanges: Sequence[tuple[str, str]], system: str = DEFAULT_SYSTEM
) -> TokenRow:
    """Many single-turn chats over the same media in one row.

    Each exchange continues at the positions right after the media and sees only the media and itself, so the
    model is trained on exactly the single-turn prompt while the picture is encoded once.
    """
    row = TokenRow(tokenizer)
    row.add_parts([opening(system), *media])
    start = row.next_position
    for number, (question, answer) in enumerate(exchanges, start=1):
        row.branch, row.next_position = number, start
        row.add_parts([question, TO_ANSWER])
        row.add_answer(answer)
    return row


def grove_row(
    tokenizer: Tokenizer, media: Sequence[Media], exchanges: Sequence[tuple[str, str]], system: str = DEFAULT_SYSTEM
) -> TokenRow:
    """As `tree_row` with every question before the media, which each exchange then holds for itself.

    What stands before a picture changes how the language model sees it; the vision tower still sees it once.
    """
    row = TokenRow(tokenizer)
    row.add_parts([opening(system)])
    start = row.next_position
    for number, (question, answer) in enumerate(exchanges, start=1):
        row.branch, row.next_position = number, start
        row.add_parts([question, *media, TO_ANSWER])
        row.add_answer(answer)
    return row


def prompt_row(tokenizer: Tokenizer, parts: Sequence[Part], system: str = DEFAULT_SYSTEM) -> TokenRow:
    """A single-turn prompt that ends where the model has to answer."""
    row = TokenRow(tokenizer)
    row.add_parts([opening(system), *parts, TO_ANSWER])
    return row
