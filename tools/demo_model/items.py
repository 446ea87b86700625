"""The held-out set: questions with encoded media, a pure function of the seed, the same for every backend."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image

from tools.demo_model import questions
from tools.demo_model.clips import moving_clip
from tools.demo_model.media import data_url, decode_mp4, encode_mp4, png_bytes
from tools.demo_model.preprocess import frames_to_patches, image_to_patches, sample_indices
from tools.demo_model.questions import Exchange
from tools.demo_model.samples import images_sample, pick_size, picture_sample
from tools.demo_model.sequences import Media, Part
from tools.demo_model.smalltalk import small_talk

# Where questions of a kind come from.
_SOURCES: dict[str, tuple[str, ...]] = {
    "shape": ("single", "pair"),
    "colour": ("single", "pair", "text"),
    "count": ("group",),
    "position": ("pair",),
    "motion": ("clip",),
    "word": ("text",),
    "digits": ("text",),
    "several_images": ("images",),
    "content": ("single", "pair", "group", "text"),
    "clip_content": ("clip",),
    "yes_no": ("single", "pair", "group"),
    "background": ("single", "group", "text"),
    "size": ("single",),
    "follow_up": ("single", "pair", "group", "text"),
    "text_only": ("talk",),
}
KINDS = tuple(_SOURCES)
CLIP_FPS = 10


@dataclass(frozen=True)
class Item:
    """One question to a model. Media go with the first turn; `history` holds earlier turns and their answers."""

    kind: str
    question: str
    answer: str
    images: tuple[bytes, ...] = ()  # PNG files
    clip: bytes | None = None  # an mp4 file
    history: tuple[tuple[str, str], ...] = ()
    is_question_first: bool = False

    def parts(self) -> list[Part]:
        """The last user turn for a local model, or the first one when there is a history."""
        return self._ordered(self._media(), self.turns()[0])

    def turns(self) -> list[str]:
        return [*(question for question, _ in self.history), self.question]

    def _media(self) -> list[Media]:
        if self.clip is not None:
            frames, fps = decode_mp4(self.clip)
            chosen = sample_indices(len(frames), fps)
            seconds_per_grid = 2 * len(frames) / (fps * len(chosen))
            return [Media(frames_to_patches([frames[k] for k in chosen]), seconds_per_grid)]
        return [Media(image_to_patches(Image.open(io.BytesIO(data)))) for data in self.images]

    def _ordered(self, media: list[Any], text: Any) -> list[Any]:
        return [text, *media] if self.is_question_first else [*media, text]

    def messages(self) -> list[dict[str, Any]]:
        """The same chat for an OpenAI server."""
        media: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": data_url(data, "image/png")}} for data in self.images
        ]
        if self.clip is not None:
            media.append({"type": "video_url", "video_url": {"url": data_url(self.clip, "video/mp4")}})
        turns = self.turns()
        content = self._ordered(media, {"type": "text", "text": turns[0]})
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        for (_, answer), question in zip(self.history, turns[1:], strict=True):
            messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": question}]
        return messages


def _clip_item(rng: Random, kind: str) -> Item:
    width, height = pick_size(rng, most_tokens=25)
    clip = moving_clip(rng, width / height)
    frames = clip.frames(rng.choice((20, 20, 20, 30, 40)), width, height)
    exchange = rng.choice([one for one in questions.about_clip(rng, clip) if one.kind == kind])
    return Item(kind, exchange.question, exchange.answer, clip=encode_mp4(frames, CLIP_FPS))


def _picture_item(rng: Random, kind: str, source: str) -> Item | None:
    sample = images_sample(rng) if source == "images" else picture_sample(rng, source)
    images = tuple(png_bytes(image) for image in sample.images)
    if kind == "follow_up":
        first, second, last = rng.sample(sample.exchanges, 3)
        history = ((first.question, first.answer), (second.question, second.answer))
        return Item(kind, last.question, last.answer, images, history=history)
    fitting = [exchange for exchange in sample.exchanges if exchange.kind == kind]
    if not fitting:
        return None
    exchange: Exchange = rng.choice(fitting)
    return Item(kind, exchange.question, exchange.answer, images, is_question_first=rng.random() < 0.25)


def held_out_items(seed: int, per_kind: int, kinds: tuple[str, ...] = KINDS) -> Iterator[Item]:
    """`per_kind` items of every kind. A kind's items do not depend on which other kinds are asked for."""
    for kind in kinds:
        rng = Random(f"held-out-{seed}-{kind}")
        made = 0
        while made < per_kind:
            source = rng.choice(_SOURCES[kind])
            if source == "talk":
                exchange = small_talk(rng)
                item: Item | None = Item(kind, exchange.question, exchange.answer)
            else:
                item = _clip_item(rng, kind) if source == "clip" else _picture_item(rng, kind, source)
            if item is not None:
                made += 1
                yield item


def folder_items(folder: Path) -> list[Item]:
    """The items of a sample folder (samples.json beside its media)."""
    items = []
    for entry in json.loads((folder / "samples.json").read_text(encoding="utf-8")):
        files = [(folder / name).read_bytes() for name in entry["media"]]
        is_clip = entry["modality"] == "video"
        items.append(
            Item(
                entry["kind"],
                entry["question"],
                entry["answer"],
                images=() if is_clip else tuple(files),
                clip=files[0] if is_clip else None,
            )
        )
    return items
