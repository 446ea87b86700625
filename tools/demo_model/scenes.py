"""What is in a picture, and how it is drawn.

A `Scene` is resolution independent: centres and radii are fractions of the picture's sides, so the same
facts can be drawn at any size and the answers never depend on pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from random import Random

from tools.demo_model.vocabulary import BACKGROUNDS, COLOURS, SHAPES, WORDS, can_contrast

Rgb = tuple[int, int, int]

SMALL_BELOW = 0.34  # diameter over the shorter side; nothing is drawn between the two limits
LARGE_ABOVE = 0.48
MOST_THINGS = 5


@dataclass(frozen=True)
class Thing:
    """One shape. `x`, `y` are fractions of width and height, `radius` of the shorter side; `tilt` in radians."""

    shape: str
    colour: str
    rgb: Rgb
    x: float
    y: float
    radius: float
    tilt: float

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"

    @property
    def size(self) -> str | None:
        """The word for a lone shape, "large" or "small"; None in between."""
        if 2 * self.radius >= LARGE_ABOVE:
            return "large"
        return "small" if 2 * self.radius <= SMALL_BELOW else None


@dataclass(frozen=True)
class Print:
    """A printed word or number; `height` is the share of the picture the text may fill (0..1)."""

    text: str
    colour: str
    rgb: Rgb
    x: float
    y: float
    fill: float

    @property
    def is_number(self) -> bool:
        return self.text.isdigit()


@dataclass(frozen=True)
class Scene:
    """A picture's facts. `aspect` is width over height; `texture_seed` fixes background detail and noise."""

    background: str
    background_rgb: Rgb
    aspect: float
    things: tuple[Thing, ...]
    text: Print | None
    texture_seed: int


def jittered(rgb: Rgb, rng: Random, spread: int) -> Rgb:
    r, g, b = (max(0, min(255, channel + rng.randint(-spread, spread))) for channel in rgb)
    return (r, g, b)


def pick_background(rng: Random) -> str:
    # White, black and grey are what people draw on; give them half of the pictures.
    return rng.choice(("white", "white", "black", "gray")) if rng.random() < 0.5 else rng.choice(tuple(BACKGROUNDS))


def pick_colour(rng: Random, background: str) -> str:
    return rng.choice([name for name in COLOURS if can_contrast(name, background)])


def _thing(rng: Random, background: str, shape: str | None = None, colour: str | None = None) -> Thing:
    colour = colour or pick_colour(rng, background)
    return Thing(
        shape=shape or rng.choice(SHAPES),
        colour=colour,
        rgb=jittered(COLOURS[colour], rng, 14),
        x=0.5,
        y=0.5,
        radius=0.2,
        tilt=rng.uniform(-0.2, 0.2),
    )


def _bare(rng: Random, aspect: float) -> Scene:
    background = pick_background(rng)
    rgb = jittered(BACKGROUNDS[background], rng, 12)
    return Scene(background, rgb, aspect, (), None, rng.getrandbits(30))


def _reach(radius: float, aspect: float) -> tuple[float, float]:
    """A radius in fractions of width and of height."""
    return (radius / max(aspect, 1.0), radius * min(aspect, 1.0))


def _placed(thing: Thing, rng: Random, radius: float, aspect: float) -> Thing:
    rx, ry = _reach(radius, aspect)
    return replace(thing, radius=radius, x=rng.uniform(rx, 1 - rx), y=rng.uniform(ry, 1 - ry))


def single_scene(rng: Random, aspect: float) -> Scene:
    """One shape, clearly large or clearly small, anywhere inside the picture."""
    scene = _bare(rng, aspect)
    diameter = rng.uniform(LARGE_ABOVE + 0.02, 0.9) if rng.random() < 0.6 else rng.uniform(0.2, SMALL_BELOW - 0.02)
    return replace(scene, things=(_placed(_thing(rng, scene.background), rng, diameter / 2, aspect),))


def pair_scene(rng: Random, aspect: float) -> Scene:
    """Two different shapes, one clearly left of or above the other."""
    scene = _bare(rng, aspect)
    first = _thing(rng, scene.background)
    while True:
        second = _thing(rng, scene.background)
        if (second.shape, second.colour) != (first.shape, first.colour):
            break
    if rng.random() < 0.7:  # most pairs differ in both, so that "the circle" and "the red shape" name one thing
        while second.shape == first.shape or second.colour == first.colour:
            second = _thing(rng, scene.background)
    while True:
        first = _placed(first, rng, rng.uniform(0.11, 0.22), aspect)
        second = _placed(second, rng, rng.uniform(0.11, 0.22), aspect)
        dx, dy = (second.x - first.x) * max(aspect, 1.0), (second.y - first.y) / min(aspect, 1.0)
        apart = first.radius + second.radius + 0.05
        if max(abs(dx), abs(dy)) > apart and (abs(dx) > 1.7 * abs(dy) or abs(dy) > 1.7 * abs(dx)):
            return replace(scene, things=(first, second))


def group_scene(rng: Random, aspect: float, count: int | None = None) -> Scene:
    """One to five shapes that do not touch: all alike in half of the pictures, mixed in the others.

    Two are always alike, because `pair_scene` alone guarantees a clear position for two different shapes.
    """
    scene = _bare(rng, aspect)
    count = count or rng.randint(1, MOST_THINGS)
    model = _thing(rng, scene.background)
    is_uniform = rng.random() < 0.5 or count == 2
    palette = [pick_colour(rng, scene.background) for _ in range(2)]
    shapes = rng.sample(SHAPES, 2)
    radius = rng.uniform(0.1, 0.17)
    while True:
        things: list[Thing] = []
        for _ in range(60):
            if len(things) == count:
                return replace(scene, things=tuple(things))
            base = model if is_uniform else _thing(rng, scene.background, rng.choice(shapes), rng.choice(palette))
            thing = _placed(base, rng, min(radius * rng.uniform(0.9, 1.1), SMALL_BELOW / 2), aspect)
            if all(_gap(thing, other, aspect) > 0.03 for other in things):
                things.append(thing)
        radius = max(0.09, radius * 0.9)


def _gap(a: Thing, b: Thing, aspect: float) -> float:
    """Free distance between two shapes, in units of the shorter side."""
    dx, dy = (a.x - b.x) * max(aspect, 1.0), (a.y - b.y) / min(aspect, 1.0)
    return math.hypot(dx, dy) - a.radius - b.radius


def text_scene(rng: Random, aspect: float, wants_number: bool | None = None) -> Scene:
    """One printed word of the list, or a number of one to three digits."""
    scene = _bare(rng, aspect)
    wants_number = rng.random() < 0.5 if wants_number is None else wants_number
    text = "".join(rng.choice("0123456789") for _ in range(rng.randint(1, 3))) if wants_number else rng.choice(WORDS)
    colour = pick_colour(rng, scene.background)
    printed = Print(
        text, colour, jittered(COLOURS[colour], rng, 14), rng.random(), rng.random(), rng.uniform(0.6, 0.92)
    )
    return replace(scene, text=printed)
