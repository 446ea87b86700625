"""Drawing scenes with PIL, at any size, with the imperfections a served picture has."""

from __future__ import annotations

import io
import math
from functools import lru_cache
from random import Random
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tools.demo_model.scenes import Print, Rgb, Scene, Thing

Point = tuple[float, float]


@lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def _polygon(shape: str, cx: float, cy: float, radius: float, tilt: float) -> list[Point]:
    """Corner points in pixels; every shape fits in the circle of `radius` around its centre."""
    if shape == "square":
        corners = [(math.pi / 4 + k * math.pi / 2, 1.0) for k in range(4)]
    elif shape == "triangle":
        corners = [(-math.pi / 2 + k * 2 * math.pi / 3, 1.0) for k in range(3)]
    elif shape == "star":
        corners = [(-math.pi / 2 + k * math.pi / 5, 1.0 if k % 2 == 0 else 0.42) for k in range(10)]
    elif shape == "cross":
        arm = 0.34
        raw = [(-arm, -1), (arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm)]
        raw += [(-x, -y) for x, y in raw]
        corners = [(math.atan2(y, x), math.hypot(x, y) / math.hypot(1, arm)) for x, y in raw]
    elif shape == "heart":
        corners = []
        for k in range(28):
            t = 2 * math.pi * k / 28
            x = 16 * math.sin(t) ** 3 / 17
            y = -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 17
            corners.append((math.atan2(y, x), math.hypot(x, y)))
    else:
        raise ValueError(f"unknown shape {shape!r}")
    return [(cx + radius * r * math.cos(a + tilt), cy + radius * r * math.sin(a + tilt)) for a, r in corners]


def draw_thing(draw: ImageDraw.ImageDraw, thing: Thing, width: int, height: int, fill: Rgb | int) -> None:
    """One shape on a picture of `width` x `height` pixels."""
    cx, cy, radius = thing.x * width, thing.y * height, thing.radius * min(width, height)
    if thing.shape == "circle":
        radius *= 0.92  # about the area of the square
        draw.ellipse((cx - radius, cy - radius, cx + radius, cy + radius), fill=fill)
    else:
        draw.polygon(_polygon(thing.shape, cx, cy, radius, thing.tilt), fill=fill)


class TextLayout(NamedTuple):
    """Where a printed text goes, in pixels: the pen's start, and the top and bottom of the ink."""

    font: ImageFont.FreeTypeFont | ImageFont.ImageFont
    x: float
    y: float
    top: float
    bottom: float


def text_layout(text: Print, width: int, height: int) -> TextLayout:
    """Fit a text into a picture of `width` x `height` pixels."""
    left, top, right, bottom = _font(64).getbbox(text.text)
    scale = min(text.fill * width / (right - left), min(text.fill, 0.7) * height / (bottom - top))
    font = _font(max(8, int(64 * scale)))
    left, top, right, bottom = font.getbbox(text.text)
    x = text.x * max(0.0, width - (right - left)) - left
    y = text.y * max(0.0, height - (bottom - top)) - top
    return TextLayout(font, x, y, y + top, y + bottom)


def _draw_text(draw: ImageDraw.ImageDraw, text: Print, width: int, height: int) -> None:
    layout = text_layout(text, width, height)
    draw.text((layout.x, layout.y), text.text, font=layout.font, fill=text.rgb)


def _background(scene: Scene, width: int, height: int, rng: Random) -> Image.Image:
    """Plain, or with a faint gradient or faint stripes: never enough to change the colour's name."""
    style = rng.random()
    if style < 0.5:
        return Image.new("RGB", (width, height), scene.background_rgb)
    rows = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    columns = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    angle = rng.uniform(0, 2 * math.pi)
    ramp = math.sin(angle) * rows + math.cos(angle) * columns
    if style > 0.8:
        ramp = np.sin(ramp * rng.uniform(4, 18))
    pixels = np.asarray(scene.background_rgb, np.float32) + rng.uniform(4, 14) * ramp[..., None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def draw_scene(scene: Scene, width: int, height: int) -> Image.Image:
    """The scene at `width` x `height` pixels, RGB. Same scene and size: the same pixels."""
    rng = Random(scene.texture_seed)
    image = _background(scene, width, height, rng)
    draw = ImageDraw.Draw(image)
    for thing in scene.things:
        draw_thing(draw, thing, width, height, thing.rgb)
    if scene.text is not None:
        _draw_text(draw, scene.text, width, height)
    return image


def degrade(image: Image.Image, rng: Random) -> Image.Image:
    """Half of the pictures as they are; the others with JPEG artefacts or sensor-like noise."""
    fate = rng.random()
    if fate < 0.25:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=rng.randint(35, 90))
        return Image.open(buffer).convert("RGB")
    if fate < 0.5:
        noise = np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(1, 7), (image.height, image.width, 3))
        return Image.fromarray((np.asarray(image, np.float32) + noise).clip(0, 255).astype(np.uint8))
    return image
