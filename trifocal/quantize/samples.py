"""Calibration samples: the built-in ones, and those of a user's file."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from trifocal.errors import ConfigError
from trifocal.quantize.drawing import drawn_pictures

_TEXTS = Path(__file__).parent / "texts.jsonl"
_MEDIA = Path(__file__).parents[1] / "demo" / "samples"
_IMAGES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp", ".bmp": "bmp", ".gif": "gif"}


@dataclass(frozen=True)
class Sample:
    """A text as it stands, or the messages of a chat with their answers; `where` it comes from, for error messages.

    `needs_media`: it is left out, and not refused, where the model takes text only.
    """

    where: str
    text: str | None = None
    messages: list[dict[str, Any]] = field(default_factory=list)
    needs_media: bool = False


def built_in() -> Iterator[Sample]:
    """Texts and chats written for this purpose, drawn pictures and the package's sample media, in turns."""
    for group in zip_longest(read_samples(_TEXTS), _drawn(), _sample_media()):
        yield from (sample for sample in group if sample is not None)


def _drawn() -> Iterator[Sample]:
    for index, (picture, question, answer) in enumerate(drawn_pictures()):
        data = io.BytesIO()
        picture.save(data, "PNG")
        url = f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
        yield Sample(f"drawn picture {index}", messages=_exchange([_image(url)], question, answer), needs_media=True)


def _sample_media() -> Iterator[Sample]:
    """Questions about the pictures of the built-in model's demonstration, which is packaged with them."""
    rows = json.loads((_MEDIA / "samples.json").read_text(encoding="utf-8"))
    for row in rows:
        if row["modality"] != "video":
            parts = [_image_file(_MEDIA / name, str(name)) for name in row["media"]]
            yield Sample(
                ", ".join(row["media"]), messages=_exchange(parts, row["question"], row["answer"]), needs_media=True
            )


def read_samples(file: Path) -> list[Sample]:
    """A `.jsonl` file, see docs/quantization.md, or a text file with an empty line between samples.

    Raises `ConfigError` naming file and line.
    """
    try:
        content = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--calibration {file} cannot be read: {error}") from None
    if file.suffix != ".jsonl":
        blocks = [block.strip() for block in content.split("\n\n")]
        samples = [Sample(f"{file.name}, text {k + 1}", text=block) for k, block in enumerate(blocks) if block]
    else:
        lines = enumerate(content.splitlines(), start=1)
        samples = [_parse(line, f"{file.name}, line {number}", file.parent) for number, line in lines if line.strip()]
    if not samples:
        raise ConfigError(f"--calibration {file} holds no sample")
    return samples


def _parse(line: str, where: str, folder: Path) -> Sample:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where} is not JSON: {error}") from None
    known = {"text", "messages", "images", "answer"}
    if not isinstance(row, dict) or not set(row) <= known or not ("text" in row) ^ ("messages" in row):
        raise ConfigError(f"{where} must be an object with text (and images, answer), or with messages")
    if "messages" in row:
        messages = row["messages"]
        if len(row) > 1 or not isinstance(messages, list) or not all(isinstance(each, dict) for each in messages):
            raise ConfigError(f"{where}: messages must be a list of objects, without other fields beside it")
        return Sample(where, messages=messages)
    text, images, answer = row["text"], row.get("images", []), row.get("answer", "")
    if not isinstance(text, str) or not isinstance(answer, str):
        raise ConfigError(f"{where}: text and answer must be strings")
    if not isinstance(images, list) or not all(isinstance(name, str) for name in images):
        raise ConfigError(f"{where}: images must be a list of file names")
    if not images and not answer:
        return Sample(where, text=text)
    return Sample(where, messages=_exchange([_image_file(folder / name, where) for name in images], text, answer))


def _exchange(parts: list[dict[str, Any]], question: str, answer: str) -> list[dict[str, Any]]:
    asked = {"role": "user", "content": [*parts, {"type": "text", "text": question}]}
    return [asked, {"role": "assistant", "content": answer}] if answer else [asked]


def _image_file(path: Path, where: str) -> dict[str, Any]:
    kind = _IMAGES.get(path.suffix.lower())
    if kind is None:
        raise ConfigError(f"{where}: {path.name} is not a picture; known: {', '.join(_IMAGES)}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{where}: cannot read {path}: {error.strerror}") from None
    return _image(f"data:image/{kind};base64,{base64.b64encode(data).decode()}")


def _image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}
