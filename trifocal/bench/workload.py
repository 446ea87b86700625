"""What is asked in a benchmark: seeded random words and drawn pictures, every prompt unlike every other.

Unlike prompts keep the prefix and the encoder cache from answering: beyond the chat template nothing repeats.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from random import Random
from typing import Any

from PIL import Image, ImageDraw

from trifocal.errors import ConfigError

_WORDS = (
    "harbor violet engine marble quiet signal copper garden window thunder paper silver orbit candle river maple "
    "anchor pepper ladder bright meadow hollow ticket cotton bridge planet kernel basket falcon mirror tunnel velvet"
).split()


SAMPLED = {"temperature": 0.7, "top_p": 0.8, "top_k": 20}  # what most models recommend


@dataclass(frozen=True)
class Shape:
    """The outline of a workload: how many requests at once, and what is in each. `is_sampled`: not greedy."""

    num_prompts: int
    concurrency: int
    input_words: int
    output_tokens: int
    num_images: int = 0
    image_size: tuple[int, int] = (448, 448)  # width, height
    is_sampled: bool = False


PRESETS = {
    "text1": Shape(num_prompts=3, concurrency=1, input_words=10, output_tokens=128),
    "text16": Shape(num_prompts=48, concurrency=16, input_words=105, output_tokens=64),
    "text1-sampled": Shape(num_prompts=3, concurrency=1, input_words=10, output_tokens=128, is_sampled=True),
    "text16-sampled": Shape(num_prompts=48, concurrency=16, input_words=105, output_tokens=64, is_sampled=True),
    "image1": Shape(num_prompts=3, concurrency=1, input_words=32, output_tokens=64, num_images=1),
    "image8": Shape(num_prompts=24, concurrency=8, input_words=32, output_tokens=64, num_images=1),
}


@dataclass(frozen=True)
class Question:
    """One request: a user message in the OpenAI form, the exact length of its answer, and how it is sampled."""

    messages: list[dict[str, Any]]
    output_tokens: int
    sampling: dict[str, Any] = field(default_factory=dict)  # fields of the request beside those of greedy ones


def make_questions(shape: Shape, seed: str, count: int | None = None) -> list[Question]:
    """`count` questions (default: the shape's own number), the same for the same seed."""
    number = shape.num_prompts if count is None else count
    return [_question(shape, Random(f"{seed}/{index}")) for index in range(number)]


def parse_size(text: str) -> tuple[int, int]:
    """`448x336` (width x height) or `448`. Raises `ConfigError`."""
    try:
        width, height = (int(part) for part in (text.split("x") if "x" in text else (text, text)))
    except ValueError:
        width = height = 0
    if width < 1 or height < 1:
        raise ConfigError(f"--image-size: expected WIDTHxHEIGHT, got {text!r}")
    return width, height


def _question(shape: Shape, random: Random) -> Question:
    text = " ".join(random.choice(_WORDS) for _ in range(shape.input_words))
    pictures = [_picture(random, shape.image_size) for _ in range(shape.num_images)]
    content: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(png).decode()}}
        for png in pictures
    ]
    content.append({"type": "text", "text": text})
    sampling = dict(SAMPLED) if shape.is_sampled else {}
    return Question([{"role": "user", "content": content}], shape.output_tokens, sampling)


def _picture(random: Random, size: tuple[int, int]) -> bytes:
    """A PNG of coloured boxes; its size in bytes is that of a screenshot rather than of noise."""
    image = Image.new("RGB", size, _colour(random))
    draw = ImageDraw.Draw(image)
    for _ in range(32):
        left, top = random.randrange(size[0]), random.randrange(size[1])
        draw.rectangle((left, top, left + size[0] // 4, top + size[1] // 4), fill=_colour(random))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _colour(random: Random) -> tuple[int, int, int]:
    return random.randrange(256), random.randrange(256), random.randrange(256)
