"""Write the sample folder: `python -m tools.demo_model.sample_media --out trifocal/demo/samples`.

Fixed scenes, not drawn at random, so that the folder is the same each time and shows every ability once.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from tools.demo_model.clips import Clip
from tools.demo_model.drawing import draw_scene
from tools.demo_model.media import encode_mp4, png_bytes
from tools.demo_model.questions import content
from tools.demo_model.scenes import Print, Scene, Thing
from tools.demo_model.vocabulary import BACKGROUNDS, COLOURS

Spot = tuple[str, str, float, float, float]  # shape, colour, x, y, radius

# Texture seeds below give plain backgrounds (see drawing._background).
_PLAIN = 1


def _scene(background: str, aspect: float, spots: list[Spot], text: Print | None = None) -> Scene:
    things = tuple(Thing(shape, colour, COLOURS[colour], x, y, radius, 0.0) for shape, colour, x, y, radius in spots)
    return Scene(background, BACKGROUNDS[background], aspect, things, text, _PLAIN)


def _printed(text: str, colour: str) -> Print:
    return Print(text, colour, COLOURS[colour], 0.5, 0.5, 0.8)


CIRCLE = _scene("blue", 1.0, [("circle", "red", 0.5, 0.5, 0.34)])
HEART = _scene("white", 1.0, [("heart", "purple", 0.45, 0.5, 0.3)])
PAIR = _scene("white", 4 / 3, [("star", "green", 0.25, 0.5, 0.2), ("square", "orange", 0.75, 0.45, 0.2)])
TRIANGLES = _scene("black", 1.0, [("triangle", "yellow", x, y, 0.14) for x, y in
                                  ((0.25, 0.3), (0.75, 0.3), (0.5, 0.75))])  # fmt: skip
WORD = _scene("white", 3 / 2, [], _printed("FISH", "black"))
NUMBER = _scene("black", 4 / 3, [], _printed("42", "white"))
PICTURES = {
    "circle.png": (CIRCLE, 224, 224),
    "heart.png": (HEART, 168, 168),
    "pair.png": (PAIR, 320, 240),
    "triangles.png": (TRIANGLES, 256, 256),
    "word.png": (WORD, 240, 160),
    "number.png": (NUMBER, 320, 240),
}
_RIGHT = _scene("black", 4 / 3, [("circle", "orange", 0.5, 0.5, 0.18)])
_UP = _scene("white", 1.0, [("square", "blue", 0.5, 0.5, 0.18)])
CLIPS = {
    "right.mp4": (Clip(_RIGHT, "right", (0.15, 0.5), (0.85, 0.5)), 160, 120),
    "up.mp4": (Clip(_UP, "up", (0.5, 0.82), (0.5, 0.18)), 128, 128),
}
CLIP_FRAMES, CLIP_FPS = 20, 10

# media, kind, question, answer
QUESTIONS: list[tuple[list[str], str, str, str]] = [
    (["circle.png"], "content", "What is the image content?", content(CIRCLE)),
    (["circle.png"], "colour", "What color is the circle?", "Red."),
    (["heart.png"], "shape", "What shape is this?", "A heart."),
    (["pair.png"], "position", "Where is the green star relative to the orange square?", "To the left."),
    (["pair.png"], "content", "Describe the image.", content(PAIR)),
    (["triangles.png"], "count", "How many triangles are there?", "Three."),
    (["triangles.png"], "yes_no", "Is there a red star?", "No."),
    (["word.png"], "word", "What does the text say?", "FISH"),
    (["number.png"], "digits", "What number is shown?", "42"),
    (["heart.png", "circle.png"], "several_images", "Describe the second image.", content(CIRCLE)),
    (["heart.png", "word.png"], "several_images", "Describe the second image.", content(WORD)),
    (["heart.png", "circle.png"], "several_images", "Which image has the circle?", "The second image."),
    (["right.mp4"], "clip_content", "What is the video content?",
     "An orange circle moving to the right on a black background."),
    (["right.mp4"], "motion", "Which direction does the circle move?", "To the right."),
    (["up.mp4"], "motion", "Where is the square going?", "Up."),
    (["up.mp4"], "clip_shape", "Which shape moves?", "A square."),
]  # fmt: skip


def entries() -> list[dict[str, Any]]:
    """What samples.json holds."""
    return [
        {
            "media": media,
            "modality": "video" if media[0].endswith(".mp4") else "image",
            "question": question,
            "answer": answer,
            "kind": kind,
        }
        for media, kind, question, answer in QUESTIONS
    ]


def write_samples(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, (scene, width, height) in PICTURES.items():
        (folder / name).write_bytes(png_bytes(draw_scene(scene, width, height)))
    for name, (clip, width, height) in CLIPS.items():
        (folder / name).write_bytes(encode_mp4(clip.frames(CLIP_FRAMES, width, height), CLIP_FPS))
    (folder / "samples.json").write_text(json.dumps(entries(), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the sample pictures, clips and questions.")
    parser.add_argument("--out", type=Path, default=Path("trifocal/demo/samples"))
    write_samples(parser.parse_args().out)
