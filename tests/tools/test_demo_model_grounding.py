"""The dense labels of the demonstration model's training agree with the drawn pixels."""

from __future__ import annotations

from random import Random

import numpy as np
import torch

from tools.demo_model.clips import moving_clip
from tools.demo_model.drawing import draw_scene
from tools.demo_model.grounding import COLUMNS, GroundingHead, label_clip, label_picture
from tools.demo_model.questions import OPPOSITE, SIDES
from tools.demo_model.scenes import group_scene, pair_scene, text_scene
from tools.demo_model.vocabulary import BACKGROUNDS, COLOURS, DIRECTIONS, SHAPES


def test_a_labelled_cell_shows_a_thing_of_that_shape_and_colour() -> None:
    """Cells of 28 pixels: one whose label names a colour holds pixels of a thing of that colour and shape."""
    for seed in range(10):
        scene = group_scene(Random(seed), 1.0)
        pixels = np.asarray(draw_scene(scene, 168, 168), np.int64)
        labels = label_picture(scene, 168, 168).reshape(6, 6, len(COLUMNS))
        assert (labels[..., 0] > 0).any()
        for row, column in np.argwhere(labels[..., 0] > 0):
            cell = pixels[row * 28 : row * 28 + 28, column * 28 : column * 28 + 28]
            shape, colour = SHAPES[labels[row, column, 0] - 1], list(COLOURS)[labels[row, column, 1] - 1]
            shown = [thing.rgb for thing in scene.things if (thing.shape, thing.colour) == (shape, colour)]
            assert any((cell == np.asarray(rgb)).all(-1).sum() > 20 for rgb in shown)
        assert labels[..., 3].sum() == len({(int(thing.y * 6), int(thing.x * 6)) for thing in scene.things})
        assert set(labels[..., 4].flat) == {list(BACKGROUNDS).index(scene.background)}


def test_the_characters_are_labelled_in_reading_order() -> None:
    for seed in range(20):
        scene = text_scene(Random(seed), 1.5)
        assert scene.text is not None
        labels = label_picture(scene, 252, 168)[:, 2].reshape(-1, 7)  # 28224 pixels at most: 4 x 7 cells
        columns = [int(row.max()) for row in labels.T]
        seen = [code for code, before in zip(columns, [0, *columns], strict=False) if code and code != before]
        alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
        printed = iter(scene.text.text)
        assert seen
        assert all(alphabet[code - 1] in printed for code in seen)  # a subsequence: narrow letters may be missing


def test_a_clip_has_labels_for_every_second_frame() -> None:
    clip = moving_clip(Random(1), 1.0, "right")
    moments = [clip.scene_at(k / 3) for k in range(4)]
    labels = label_clip(moments, 112, 112, clip.direction).reshape(2, 4, 4, len(COLUMNS))
    columns = [np.argwhere(grid[..., 3])[0][1] for grid in labels]
    assert columns[0] < columns[1]
    is_thing = labels[..., 0] > 0
    assert set(labels[is_thing][:, 6]) == {1 + DIRECTIONS.index("right")}
    assert set(labels[~is_thing][:, 6]) == {0}


def test_a_pair_is_labelled_with_the_side_on_which_each_lies() -> None:
    """Read off the pixels' labels again: where the cells of one shape lie as seen from those of the other."""
    for seed in range(20):
        scene = pair_scene(Random(seed), 1.0)
        labels = label_picture(scene, 168, 168).reshape(6, 6, len(COLUMNS))
        first, second = (
            np.argwhere(
                (labels[..., 0] == 1 + SHAPES.index(a.shape)) & (labels[..., 1] == 1 + list(COLOURS).index(a.colour))
            )
            for a in scene.things
        )
        dy, dx = first.mean(0) - second.mean(0)
        side = ("left" if dx < 0 else "right") if abs(dx) > abs(dy) else ("above" if dy < 0 else "below")
        assert {list(SIDES)[labels[row, column, 5] - 1] for row, column in first} == {side}
        assert {list(SIDES)[labels[row, column, 5] - 1] for row, column in second} == {OPPOSITE[side]}


def test_a_group_is_labelled_with_its_counts() -> None:
    for seed in range(20):
        scene = group_scene(Random(seed), 1.0)
        labels = label_picture(scene, 168, 168)
        for thing in scene.things:
            cells = labels[
                (labels[:, 0] == 1 + SHAPES.index(thing.shape))
                & (labels[:, 1] == 1 + list(COLOURS).index(thing.colour))
            ]
            like = [
                sum(getattr(other, field) == getattr(thing, field) for other in scene.things)
                for field in ("shape", "colour")
            ]
            assert {tuple(cell) for cell in cells[:, 7:]} <= {(len(scene.things), *like)}


def test_the_grounding_loss_falls_for_right_predictions() -> None:
    torch.manual_seed(0)
    head, labels = GroundingHead(8), torch.zeros(5, len(COLUMNS), dtype=torch.long)
    before = head.loss(torch.randn(5, 8), labels)
    offsets = np.cumsum([0, *COLUMNS.values()])[:-1].tolist()
    with torch.no_grad():
        head.linear.bias[offsets] += 10
    assert head.loss(torch.randn(5, 8), labels) < before / 10
    labels[0] = 1
    assert head.accuracy(torch.randn(5, 8), labels) == dict.fromkeys(COLUMNS, 0.0)
    with torch.no_grad():
        head.linear.bias[[offset + 1 for offset in offsets]] += 20
    assert head.accuracy(torch.randn(5, 8), labels) == dict.fromkeys(COLUMNS, 1.0)
