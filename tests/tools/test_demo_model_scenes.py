"""The demonstration model's generator: reproducible, and its answers agree with the drawn pixels."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import numpy as np
import pytest
from scipy import ndimage

from tools.demo_model.clips import moving_clip
from tools.demo_model.drawing import draw_scene
from tools.demo_model.items import KINDS, held_out_items
from tools.demo_model.questions import about_clip, about_images, about_scene, content
from tools.demo_model.samples import make_sample
from tools.demo_model.scenes import Scene, group_scene, pair_scene, single_scene, text_scene

ASPECTS = (0.6, 1.0, 1.7)


def foreground(scene: Scene, width: int = 240) -> np.ndarray:
    """[H, W] bool: pixels nearer to some shape's colour than to the background's."""
    pixels = np.asarray(draw_scene(scene, width, round(width / scene.aspect)), np.float32)
    colours = [scene.background_rgb, *(thing.rgb for thing in scene.things)]
    distances = np.stack([np.abs(pixels - np.asarray(rgb, np.float32)).sum(-1) for rgb in colours])
    return distances.argmin(0) > 0


@pytest.mark.parametrize("kind", ["single", "pair", "group", "text", "images", "clip"])
def test_the_same_seed_draws_the_same_sample(kind: str) -> None:
    first, second, other = (make_sample(Random(seed), kind) for seed in (3, 3, 4))
    assert first.exchanges == second.exchanges
    pictures = [[np.asarray(image) for image in one.images + one.frames] for one in (first, second)]
    assert all(np.array_equal(a, b) for a, b in zip(*pictures, strict=True))
    assert first.exchanges != other.exchanges


@pytest.mark.parametrize("seed", range(12))
def test_the_count_is_the_number_of_blobs(seed: int) -> None:
    scene = group_scene(Random(seed), ASPECTS[seed % 3])
    blobs, _ = ndimage.label(ndimage.binary_opening(foreground(scene), iterations=2))
    assert blobs.max() == len(scene.things)
    asked = [one for one in about_scene(Random(seed), scene) if one.kind == "count"]
    numbers = ("Zero.", "One.", "Two.", "Three.", "Four.", "Five.")
    assert asked[0].answer == numbers[blobs.max()]


@pytest.mark.parametrize("seed", range(12))
def test_the_position_is_that_of_the_pixels(seed: int) -> None:
    scene = pair_scene(Random(seed), ASPECTS[seed % 3])
    centres = [ndimage.center_of_mass(foreground(replace(scene, things=(thing,)))) for thing in scene.things]
    (first_y, first_x), (second_y, second_x) = centres
    first = scene.things[0]
    horizontal = abs(first_x - second_x) > abs(first_y - second_y)
    left = "To the left." if first_x < second_x else "To the right."
    above = "Above." if first_y < second_y else "Below."
    asked = [one for draw in range(100) for one in about_scene(Random(draw), scene)]
    answers = {one.answer for one in asked if one.question.startswith(f"Where is the {first.name} ")}
    assert answers == {left if horizontal else above}


@pytest.mark.parametrize("seed", range(8))
def test_the_motion_is_that_of_the_pixels(seed: int) -> None:
    clip = moving_clip(Random(seed), ASPECTS[seed % 3])
    (y0, x0), (y1, x1) = (ndimage.center_of_mass(foreground(clip.scene_at(moment))) for moment in (0.0, 1.0))
    if abs(x1 - x0) > abs(y1 - y0):
        seen = "To the right." if x1 > x0 else "To the left."
    else:
        seen = "Down." if y1 > y0 else "Up."
    assert {one.answer for one in about_clip(Random(seed), clip) if one.kind == "motion"} == {seen}


def test_a_lone_shape_is_clearly_large_or_small() -> None:
    for seed in range(60):
        scene = single_scene(Random(seed), ASPECTS[seed % 3])
        share = foreground(scene).any(0).sum() / min(240, round(240 / scene.aspect))
        assert scene.things[0].size == ("large" if share > 0.36 else "small")
        assert f"A {scene.things[0].size} " in content(scene)


def test_printed_text_stays_inside_the_picture() -> None:
    for seed in range(20):
        scene = text_scene(Random(seed), ASPECTS[seed % 3])
        assert scene.text is not None
        pixels = np.asarray(draw_scene(scene, 150, round(150 / scene.aspect)), np.float32)
        near = np.abs(pixels - np.asarray(scene.text.rgb, np.float32)).sum(-1) < 30
        assert near.any()
        edges = np.concatenate([near[0], near[-1], near[:, 0], near[:, -1]])
        assert edges.mean() < 0.1


def test_which_image_has_one_right_answer() -> None:
    for seed in range(30):
        rng = Random(seed)
        scenes = [single_scene(rng, 1.0), single_scene(rng, 1.0)]
        for one in about_images(rng, scenes):
            if not one.question.startswith(("Which", "In which")):
                continue
            index = ("first", "second").index(one.answer.split()[1])
            thing, other = scenes[index].things[0], scenes[1 - index].things[0]
            named = thing.name if thing.name in one.question else thing.shape
            assert named in one.question
            assert named not in (other.name, other.shape)


def test_the_held_out_set_is_a_function_of_the_seed() -> None:
    kinds = ("shape", "motion", "follow_up", "text_only")
    assert list(held_out_items(1, 2, kinds)) == list(held_out_items(1, 2, kinds))
    assert list(held_out_items(1, 2, kinds)) != list(held_out_items(2, 2, kinds))
    alone = list(held_out_items(1, 2, ("motion",)))
    assert alone == [item for item in held_out_items(1, 2, kinds) if item.kind == "motion"]
    assert {item.kind for item in held_out_items(1, 1, KINDS)} == set(KINDS)
