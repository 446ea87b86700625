"""Clips: one shape that moves straight in one of four directions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from PIL import Image

from tools.demo_model.drawing import draw_scene
from tools.demo_model.scenes import Scene, _reach, single_scene
from tools.demo_model.vocabulary import DIRECTIONS


@dataclass(frozen=True)
class Clip:
    """A scene with one shape that goes from `start` to `end` (fractions of width and height) at even speed."""

    scene: Scene
    direction: str
    start: tuple[float, float]
    end: tuple[float, float]

    def scene_at(self, moment: float) -> Scene:
        """The scene at `moment`, 0 (first frame) to 1 (last frame)."""
        x, y = (a + (b - a) * moment for a, b in zip(self.start, self.end, strict=True))
        return replace(self.scene, things=(replace(self.scene.things[0], x=x, y=y),))

    def frames(self, count: int, width: int, height: int) -> list[Image.Image]:
        """`count` evenly spaced frames, first and last included."""
        return [draw_scene(self.scene_at(k / max(1, count - 1)), width, height) for k in range(count)]


def moving_clip(rng: Random, aspect: float, direction: str | None = None) -> Clip:
    """A clip whose shape crosses at least a third of the picture."""
    direction = direction or rng.choice(DIRECTIONS)
    radius = rng.uniform(0.11, 0.22)
    scene = single_scene(rng, aspect)
    scene = replace(scene, things=(replace(scene.things[0], radius=radius),))
    rx, ry = _reach(radius, aspect)
    is_sideways = direction in ("left", "right")
    edge, side = (rx, ry) if is_sideways else (ry, rx)
    room = 1 - 2 * edge
    travel = rng.uniform(min(0.35, room), room)
    low = edge + rng.uniform(0, room - travel)
    across = rng.uniform(side, 1 - side)
    drift = max(side, min(1 - side, across + rng.uniform(-0.05, 0.05)))
    begin, finish = (low, low + travel) if direction in ("right", "down") else (low + travel, low)
    if is_sideways:
        return Clip(scene, direction, (begin, across), (finish, drift))
    return Clip(scene, direction, (across, begin), (drift, finish))
