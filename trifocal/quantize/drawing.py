"""Pictures for calibration, drawn from fixed numbers: shapes, charts, writing, gradients, textures."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

_SIZE = 336
_ROUNDS = 3
_COLOURS = {
    "red": (214, 48, 49), "green": (39, 174, 96), "blue": (41, 98, 255), "yellow": (250, 202, 48),
    "purple": (142, 68, 173), "orange": (230, 126, 34), "white": (250, 250, 250), "black": (20, 20, 24),
}  # fmt: skip
_WORDS = ("HARBOUR", "Ticket 4182", "OPEN 9-17", "maple & oak", "Exit >", "No. 73", "total: 18.40")


def drawn_pictures() -> Iterator[tuple[Image.Image, str, str]]:
    """Picture, question, answer; the same at every call."""
    rng = Random("calibration")
    for _ in range(_ROUNDS):
        yield from (draw(rng) for draw in (_shapes, _chart, _landscape, _writing, _texture, _grid))


def _canvas(colour: str) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    picture = Image.new("RGB", (_SIZE, _SIZE), _COLOURS[colour])
    return picture, ImageDraw.Draw(picture)


def _shapes(rng: Random) -> tuple[Image.Image, str, str]:
    back, first, second = rng.sample(sorted(_COLOURS), 3)
    picture, draw = _canvas(back)
    size, x, y = rng.randrange(70, 120), rng.randrange(10, 60), rng.randrange(20, 200)
    draw.ellipse((x, y, x + size, y + size), fill=_COLOURS[first])
    left = x + size + rng.randrange(10, 60)
    draw.rectangle((left, y, left + size * 2 // 3, y + size), fill=_COLOURS[second])
    question = "Describe the picture in one sentence."
    return picture, question, f"A {first} circle to the left of a {second} square on a {back} background."


def _chart(rng: Random) -> tuple[Image.Image, str, str]:
    picture, draw = _canvas("white")
    heights = [rng.randrange(30, 260) for _ in range(5)]
    for index, (height, colour) in enumerate(zip(heights, sorted(_COLOURS), strict=False)):
        left = 30 + index * 58
        draw.rectangle((left, 300 - height, left + 40, 300), fill=_COLOURS[colour], outline=_COLOURS["black"])
        draw.text((left + 14, 306), "ABCDE"[index], fill=_COLOURS["black"], font=ImageFont.load_default(20))
    highest = "ABCDE"[heights.index(max(heights))]
    return picture, "Which bar of the chart is the highest?", f"Bar {highest} is the highest of the five."


def _landscape(rng: Random) -> tuple[Image.Image, str, str]:
    down = np.linspace(0, 1, _SIZE)[:, None, None]
    sky, ground = np.array((90.0, 150.0, 235.0)), np.array((235.0, 200.0, 150.0))
    picture = Image.fromarray(np.broadcast_to(sky + (ground - sky) * down, (_SIZE, _SIZE, 3)).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    hills = [(x, 230 + int(40 * np.sin(x / 40 + rng.random()))) for x in range(0, _SIZE + 1, 12)]
    draw.polygon([(0, _SIZE), *hills, (_SIZE, _SIZE)], fill=_COLOURS["green"])
    sun = rng.randrange(40, 260)
    draw.ellipse((sun, 40, sun + 50, 90), fill=_COLOURS["yellow"])
    side = "left" if sun + 25 < _SIZE / 2 else "right"
    question = "What do you see, and where is the sun?"
    return picture, question, f"Green hills under a blue sky. The sun stands in the {side} half of the picture."


def _writing(rng: Random) -> tuple[Image.Image, str, str]:
    picture, draw = _canvas("white")
    words = rng.sample(_WORDS, 3)
    for line, word in enumerate(words):
        draw.text((24, 40 + 90 * line), word, fill=_COLOURS["black"], font=ImageFont.load_default(34 + 6 * line))
    return picture, "Read the text in the picture, line by line.", "\n".join(words)


def _texture(rng: Random) -> tuple[Image.Image, str, str]:
    noise = np.random.default_rng(rng.randrange(1000)).integers(0, 256, (_SIZE // 8, _SIZE // 8, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((_SIZE, _SIZE), Image.Resampling.BICUBIC)
    picture = picture.filter(ImageFilter.GaussianBlur(3))
    return picture, "What is this?", "A blurred texture of many colours; no object can be made out in it."


def _grid(rng: Random) -> tuple[Image.Image, str, str]:
    picture, draw = _canvas("black")
    count = rng.randrange(3, 7)
    step = _SIZE / count
    for row in range(count):
        for column in range(count):
            colour = _COLOURS["white" if (row + column) % 2 else "blue"]
            box = (column * step + 4, row * step + 4, (column + 1) * step - 4, (row + 1) * step - 4)
            draw.rectangle(box, fill=colour)
    question = "How many fields does the board have?"
    return picture, question, f"The board has {count} rows and {count} columns: {count * count} fields."
