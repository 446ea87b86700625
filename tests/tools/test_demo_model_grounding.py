"""The dense labels of the demonstration model's training agree with the drawn pixels."""

from __future__ import annotations

from random import Random

import numpy as np
import torch

from tools.demo_model.clips import moving_clip
from tools.demo_model.drawing import draw_scene
from tools.demo_model.grounding import CLASSES, GroundingHead, label_clip, label_picture
from tools.demo_model.scenes import group_scene, text_scene
from tools.demo_model.vocabulary import BACKGROUNDS, COLOURS, SHAPES


def test_a_labelled_cell_shows_a_thing_of_that_shape_and_colour() -> None:
    """Cells of 28 pixels: one whose label names a colour holds pixels of a thing of that colour and shape."""
    for seed in range(10):
        scene = group_scene(Random(seed), 1.0)
        pixels = np.asarray(draw_scene(scene, 168, 168), np.int64)
        labels = label_picture(scene, 168, 168).reshape(6, 6, len(CLASSES))
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
    labels = label_clip(moments, 112, 112).reshape(2, 4, 4, len(CLASSES))
    columns = [np.argwhere(grid[..., 3])[0][1] for grid in labels]
    assert columns[0] < columns[1]


def test_the_grounding_loss_falls_for_right_predictions() -> None:
    torch.manual_seed(0)
    head, labels = GroundingHead(8), torch.zeros(5, len(CLASSES), dtype=torch.long)
    before = head.loss(torch.randn(5, 8), labels)
    offsets = [sum(CLASSES[:column]) for column in range(len(CLASSES))]
    with torch.no_grad():
        head.linear.bias[offsets] += 10
    assert head.loss(torch.randn(5, 8), labels) < before / 10
