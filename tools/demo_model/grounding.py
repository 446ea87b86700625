"""What lies under each media token: dense labels that teach the vision tower early, beside the answers.

Answers alone say little about a picture (one word for a thousand pixels), and shapes stay at chance for a long time.
The labels are read off the scene, not off the pixels; the heads that predict them are not part of the exported model.
"""

from __future__ import annotations

import string
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, rms_norm

from tools.demo_model.drawing import draw_thing, text_layout
from tools.demo_model.preprocess import FACTOR, smart_resize
from tools.demo_model.questions import SIDES, side_of
from tools.demo_model.scenes import MOST_THINGS, Scene, Thing
from tools.demo_model.vocabulary import BACKGROUNDS, COLOURS, DIRECTIONS, SHAPES

_DOTS = 8  # a cell (one token) is drawn with so many dots a side
_LEAST_DOTS = 10  # fewer dots of a thing in a cell than this do not count
_CHARACTERS = string.ascii_uppercase + string.digits
_SIDES = tuple(SIDES)
# Columns of a label row, each with its number of classes; class 0 is "nothing" but for the background. The last five
# say of a thing how it stands to the others: its side of the only other one, where it is going, how many things there
# are, how many of its shape and how many of its colour.
COLUMNS = {
    "shape": 1 + len(SHAPES),
    "colour": 1 + len(COLOURS),
    "character": 1 + len(_CHARACTERS),
    "centre": 2,
    "background": len(BACKGROUNDS),
    "side": 1 + len(_SIDES),
    "motion": 1 + len(DIRECTIONS),
    "things": 1 + MOST_THINGS,
    "same_shape": 1 + MOST_THINGS,
    "same_colour": 1 + MOST_THINGS,
}
# Counting what is alike is the hardest to see and the last to be learned.
_WEIGHTS = {"things": 2.0, "same_shape": 4.0, "same_colour": 3.0}
_UNKNOWN = -100  # cross entropy leaves such a label out


def label_picture(scene: Scene, width: int, height: int, direction: str | None = None) -> NDArray[np.int64]:
    """Labels of a picture of `width` x `height` pixels, [tokens, columns]; `direction` is where its one thing goes."""
    rows, columns = (side // FACTOR for side in smart_resize(height, width))
    labels = np.zeros((rows, columns, len(COLUMNS)), dtype=np.int64)
    covered = _majority(_draw_things(scene, rows, columns), rows, columns)
    for number, thing in enumerate(scene.things, 1):
        labels[covered == number, 0] = 1 + SHAPES.index(thing.shape)
        labels[covered == number, 1] = 1 + list(COLOURS).index(thing.colour)
        labels[covered == number, 5:] = _relations(scene, thing, direction)
    for thing in scene.things:
        labels[min(rows - 1, int(thing.y * rows)), min(columns - 1, int(thing.x * columns)), 3] = 1
    if scene.text is not None:
        labels[..., 2] = _majority(_draw_characters(scene, rows, columns, width, height), rows, columns)
        labels[..., 1] = np.where(labels[..., 2] > 0, 1 + list(COLOURS).index(scene.text.colour), labels[..., 1])
    labels[..., 4] = list(BACKGROUNDS).index(scene.background)
    return labels.reshape(-1, len(COLUMNS))


def label_clip(scenes: Sequence[Scene], width: int, height: int, direction: str) -> NDArray[np.int64]:
    """Labels of a clip: those of the first frame of every pair, one after the other."""
    return np.concatenate([label_picture(scene, width, height, direction) for scene in scenes[::2]])


def _relations(scene: Scene, thing: Thing, direction: str | None) -> list[int]:
    """The last five columns. Only two different things are sure to lie clearly beside or above each other."""
    others = [other for other in scene.things if other is not thing]
    side = 0
    if others:
        is_clear = len(others) == 1 and others[0].name != thing.name
        side = 1 + _SIDES.index(side_of(thing, others[0], scene.aspect)) if is_clear else _UNKNOWN
    same_shape = sum(other.shape == thing.shape for other in scene.things)
    same_colour = sum(other.colour == thing.colour for other in scene.things)
    motion = 1 + DIRECTIONS.index(direction) if direction else 0
    return [side, motion, len(scene.things), same_shape, same_colour]


def _draw_things(scene: Scene, rows: int, columns: int) -> Image.Image:
    dots = Image.new("L", (columns * _DOTS, rows * _DOTS))
    draw = ImageDraw.Draw(dots)
    for number, thing in enumerate(scene.things, 1):
        draw_thing(draw, thing, dots.width, dots.height, number)
    return dots


def _draw_characters(scene: Scene, rows: int, columns: int, width: int, height: int) -> Image.Image:
    assert scene.text is not None
    dots = Image.new("L", (columns * _DOTS, rows * _DOTS))
    draw, layout = ImageDraw.Draw(dots), text_layout(scene.text, width, height)
    for index, character in enumerate(scene.text.text):
        left, right = (layout.x + layout.font.getlength(scene.text.text[:end]) for end in (index, index + 1))
        box = (left / width, layout.top / height, right / width, layout.bottom / height)
        scaled = [side * size for side, size in zip(box, (*dots.size, *dots.size), strict=True)]
        draw.rectangle(scaled, fill=1 + _CHARACTERS.index(character))
    return dots


def _majority(dots: Image.Image, rows: int, columns: int) -> NDArray[np.int64]:
    """[rows, columns]: the number that fills most of a cell, 0 where none fills enough of it."""
    cells = np.asarray(dots).reshape(rows, _DOTS, columns, _DOTS).transpose(0, 2, 1, 3).reshape(rows, columns, -1)
    counts = (cells[..., None] == np.arange(1, max(2, int(cells.max()) + 1))).sum(axis=2)
    best: NDArray[np.int64] = counts.argmax(axis=-1) + 1
    return np.where(counts.max(axis=-1) >= _LEAST_DOTS, best, 0)


class GroundingHead(nn.Module):
    """Predicts the labels from the merged vision features; used in training only.

    `words`: for the shape and the colour column, the token ids that name the classes from 1 on.
    """

    def __init__(self, hidden_size: int, words: Sequence[Sequence[int]] = ()) -> None:
        super().__init__()
        self.words = [torch.tensor(ids) for ids in words]
        self.norm = nn.LayerNorm(hidden_size)
        self.linear = nn.Linear(hidden_size, sum(COLUMNS.values()))

    def _logits(self, features: Tensor) -> tuple[Tensor, ...]:
        logits: tuple[Tensor, ...] = self.linear(self.norm(features)).split(list(COLUMNS.values()), dim=1)
        return logits

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """Weighted mean over the columns of two cross entropies: over all tokens, and over those that show something.

        features [tokens, hidden], labels [tokens, columns]. Most of a picture is background: without the second term
        the few tokens that matter would hardly count.
        """
        total, weights = features.new_zeros(()), 0.0
        for column, (name, part) in enumerate(zip(COLUMNS, self._logits(features), strict=True)):
            weight, shows = _WEIGHTS.get(name, 1.0), labels[:, column] > 0
            total = total + weight * cross_entropy(part, labels[:, column])
            weights += weight
            if bool(shows.any()):
                total = total + weight * cross_entropy(part[shows], labels[shows, column])
                weights += weight
        return total / weights

    def word_loss(self, features: Tensor, labels: Tensor, embeddings: Tensor) -> Tensor:
        """Mean cross entropy of choosing the word for a shape and for a colour by the direction of its embedding.

        features [tokens, hidden], labels [tokens, columns], embeddings [vocabulary, hidden]. What a token shows then
        points where the word for it points, and "the star" of a question finds the star in the picture.
        """
        size = features.shape[-1]
        seen, known = rms_norm(features, (size,)), rms_norm(embeddings, (size,))
        losses = [features.new_zeros(())]
        for column, ids in enumerate(self.words):
            shows = labels[:, column] > 0
            if bool(shows.any()):
                logits = seen[shows] @ known[ids].T / size**0.5
                losses.append(cross_entropy(logits, labels[shows, column] - 1))
        return torch.stack(losses).sum()

    @torch.no_grad()
    def accuracy(self, features: Tensor, labels: Tensor) -> dict[str, float]:
        """By column: the share of right predictions among the tokens that show something."""
        shares = {}
        for column, (name, part) in enumerate(zip(COLUMNS, self._logits(features), strict=True)):
            shows = labels[:, column] > 0
            if bool(shows.any()):
                shares[name] = float((part.argmax(1) == labels[:, column])[shows].float().mean())
        return shares
