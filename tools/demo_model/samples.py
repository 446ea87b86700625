"""Questions with drawn media, before tokenization: what the trainer, the evaluator and the sample folder share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tools.demo_model import clips, questions, scenes
from tools.demo_model.drawing import degrade, draw_scene
from tools.demo_model.grounding import label_clip, label_picture
from tools.demo_model.preprocess import FACTOR, MAX_PIXELS
from tools.demo_model.questions import Exchange

# Merged grids (rows, columns) a picture below the upper limit may land on: 9 to 36 tokens, up to about 2:1.
_GRIDS = tuple((h, w) for h in range(2, 10) for w in range(2, 10) if 9 <= h * w <= 36 and max(h, w) <= 2.05 * min(h, w))


@dataclass(frozen=True)
class Sample:
    """Media with everything that can be asked about it.

    `images` are pictures; for a clip `frames` are its sampled frames and `fps` the rate they were sampled at.
    """

    kind: str
    exchanges: tuple[Exchange, ...]
    images: tuple[Image.Image, ...] = ()
    frames: tuple[Image.Image, ...] = ()
    fps: float = 2.0
    labels: tuple[NDArray[np.int64], ...] = ()  # what is under each token, per item (see grounding.py)


def pick_size(rng: Random, ease: float = 0.0, most_tokens: int = 36) -> tuple[int, int]:
    """(width, height) in pixels. Half are native sizes near 84..168, half are bigger and will be shrunk.

    `ease` is the probability of an easy size (near 112 x 112), for the start of training.
    """
    if rng.random() < ease:
        return 112, 112
    if most_tokens < 36 or rng.random() < 0.5:
        rows, columns = rng.choice([grid for grid in _GRIDS if grid[0] * grid[1] <= most_tokens])
        return columns * FACTOR + rng.randint(-12, 12), rows * FACTOR + rng.randint(-12, 12)
    aspect = 2 ** rng.uniform(-1, 1)
    area = MAX_PIXELS * 4 ** rng.uniform(0.1, 1.2)
    return max(28, round((area * aspect) ** 0.5)), max(28, round((area / aspect) ** 0.5))


_SCENES = {
    "single": scenes.single_scene,
    "pair": scenes.pair_scene,
    "group": scenes.group_scene,
    "text": scenes.text_scene,
}


def _drawn(
    rng: Random, kind: str, ease: float, most_tokens: int = 36
) -> tuple[scenes.Scene, Image.Image, NDArray[np.int64]]:
    width, height = pick_size(rng, ease, most_tokens)
    scene = _SCENES[kind](rng, width / height)
    return scene, degrade(draw_scene(scene, width, height), rng), label_picture(scene, width, height)


def picture_sample(rng: Random, kind: str, ease: float = 0.0) -> Sample:
    scene, image, labels = _drawn(rng, kind, ease)
    return Sample(kind, tuple(questions.about_scene(rng, scene)), images=(image,), labels=(labels,))


def images_sample(rng: Random, ease: float = 0.0) -> Sample:
    """Two pictures (three in a quarter of the samples), smaller than single ones so that rows stay short."""
    count = 2 if rng.random() < 0.75 else 3
    kinds = [rng.choice(("single", "single", "single", "pair", "text")) for _ in range(count)]
    drawn = [_drawn(rng, kind, ease, most_tokens=20 if rng.random() < 0.7 else 36) for kind in kinds]
    exchanges = questions.about_images(rng, [scene for scene, _, _ in drawn])
    labels = tuple(labels for _, _, labels in drawn)
    return Sample("images", tuple(exchanges), images=tuple(image for _, image, _ in drawn), labels=labels)


def clip_sample(rng: Random, ease: float = 0.0) -> Sample:
    """A clip of 4 to 16 sampled frames, mostly 4; every frame compressed alike."""
    count = rng.choices((4, 6, 8, 12, 16), (60, 18, 15, 4, 3))[0]
    width, height = pick_size(rng, ease, most_tokens=25 if count == 4 else 16 if count <= 8 else 9)
    if count == 4 and rng.random() < 0.25:
        width, height = pick_size(rng)
    clip = clips.moving_clip(rng, width / height)
    fate = rng.getrandbits(32)
    frames = tuple(degrade(frame, Random(fate)) for frame in clip.frames(count, width, height))
    fps = rng.choice((1.0, 1.5, 2.0, 2.0, 2.0, 2.0, 3.0, 4.0)) * rng.uniform(0.97, 1.03)
    moments = [clip.scene_at(k / max(1, count - 1)) for k in range(count)]
    labels = (label_clip(moments, width, height, clip.direction),)
    return Sample("clip", tuple(questions.about_clip(rng, clip)), frames=frames, fps=fps, labels=labels)


def make_sample(rng: Random, kind: str, ease: float = 0.0) -> Sample:
    if kind == "images":
        return images_sample(rng, ease)
    if kind == "clip":
        return clip_sample(rng, ease)
    return picture_sample(rng, kind, ease)


def pick_exchanges(rng: Random, exchanges: Sequence[Exchange], count: int) -> list[Exchange]:
    return list(exchanges) if len(exchanges) <= count else rng.sample(list(exchanges), count)
