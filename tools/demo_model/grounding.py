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
from torch.nn.functional import cross_entropy

from tools.demo_model.drawing import draw_thing, text_layout
from tools.demo_model.preprocess import FACTOR, smart_resize
from tools.demo_model.scenes import Scene
from tools.demo_model.vocabulary import BACKGROUNDS, COLOURS, SHAPES

_DOTS = 8  # a cell (one token) is drawn with so many dots a side
_LEAST_DOTS = 10  # fewer dots of a thing in a cell than this do not count
_CHARACTERS = string.ascii_uppercase + string.digits
# Columns of a label row, each with its number of classes; class 0 is "nothing" but for the background.
CLASSES = (1 + len(SHAPES), 1 + len(COLOURS), 1 + len(_CHARACTERS), 2, len(BACKGROUNDS))


def label_picture(scene: Scene, width: int, height: int) -> NDArray[np.int64]:
    """Labels of a picture of `width` x `height` pixels: [tokens, 5] shape, colour, character, centre, background."""
    rows, columns = (side // FACTOR for side in smart_resize(height, width))
    labels = np.zeros((rows, columns, len(CLASSES)), dtype=np.int64)
    things = _majority(_draw_things(scene, rows, columns), rows, columns)
    shapes = np.array([0, *(1 + SHAPES.index(thing.shape) for thing in scene.things)])
    colours = np.array([0, *(1 + list(COLOURS).index(thing.colour) for thing in scene.things)])
    labels[..., 0], labels[..., 1] = shapes[things], colours[things]
    for thing in scene.things:
        labels[min(rows - 1, int(thing.y * rows)), min(columns - 1, int(thing.x * columns)), 3] = 1
    if scene.text is not None:
        labels[..., 2] = _majority(_draw_characters(scene, rows, columns, width, height), rows, columns)
        labels[..., 1] = np.where(labels[..., 2] > 0, 1 + list(COLOURS).index(scene.text.colour), labels[..., 1])
    labels[..., 4] = list(BACKGROUNDS).index(scene.background)
    return labels.reshape(-1, len(CLASSES))


def label_clip(scenes: Sequence[Scene], width: int, height: int) -> NDArray[np.int64]:
    """Labels of a clip: those of the first frame of every pair, one after the other."""
    return np.concatenate([label_picture(scene, width, height) for scene in scenes[::2]])


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
    """Predicts the labels from the merged vision features; used in training only."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.linear = nn.Linear(hidden_size, sum(CLASSES))

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """Mean over the label columns of two cross entropies: over all tokens, and over those that show something.

        features [tokens, hidden], labels [tokens, 5]. Most of a picture is background: without the second term the
        few tokens that matter would hardly count.
        """
        logits = self.linear(self.norm(features)).split(list(CLASSES), dim=1)
        losses = []
        for column, part in enumerate(logits):
            losses.append(cross_entropy(part, labels[:, column]))
            shows = labels[:, column] > 0
            if bool(shows.any()):
                losses.append(cross_entropy(part[shows], labels[shows, column]))
        return torch.stack(losses).mean()
