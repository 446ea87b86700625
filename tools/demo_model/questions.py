"""Questions and answers that follow from a scene's facts alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from tools.demo_model.clips import Clip
from tools.demo_model.scenes import Scene, Thing
from tools.demo_model.vocabulary import COLOURS, NUMBERS, ORDINALS, SHAPES


@dataclass(frozen=True)
class Exchange:
    """One question with its only right answer; `kind` is the row it counts under in the report."""

    kind: str
    question: str
    answer: str


CONTENT = (
    "What is the image content?",
    "What is the image content?",
    "What is the content of this image?",
    "What is in the image?",
    "What is in this picture?",
    "What is this?",
    "What do you see?",
    "What does the picture show?",
    "Describe the image.",
    "Describe this picture.",
    "Please describe the image.",
)
CLIP_CONTENT = (
    "What is the video content?",
    "What is the content of this video?",
    "What happens in the video?",
    "What happens in this clip?",
    "What do you see?",
    "Describe the video.",
    "Describe this clip.",
)
SHAPE = ("What shape is this?", "What shape is it?", "Which shape is shown?", "What shape do you see?",
         "What is the shape in the picture?", "Which shape is in the image?", "Name the shape.")  # fmt: skip
COLOUR = ("What color is the {}?", "What colour is the {}?", "Which color is the {}?", "What is the color of the {}?",
          "What is the colour of the {}?", "Name the color of the {}.")  # fmt: skip
BACKGROUND = ("What color is the background?", "What colour is the background?", "What is the background color?")
COUNT = ("How many {} are there?", "How many {} do you see?", "How many {} are in the picture?",
         "How many {} are in the image?", "Count the {}.")  # fmt: skip
READ = ("What does the text say?", "What is written here?", "What is written in the picture?", "Read the text.",
        "What is the text in the image?")  # fmt: skip
READ_WORD = ("Which word is printed?", "What word is this?", "Read the word.", "What does the word say?")
READ_NUMBER = ("Which number is printed?", "What number is this?", "Read the number.", "What number is shown?")
MOTION = ("Which direction does the {} move?", "In which direction does the {} move?", "Where does the {} move?",
          "Which way does the {} go?", "Where is the {} going?", "Which way is the {} moving?")  # fmt: skip
WHERE = ("Where is the {0} relative to the {1}?", "Where is the {0} compared to the {1}?",
         "Where is the {0} from the {1}?", "What is the position of the {0} relative to the {1}?")  # fmt: skip
SIDES = {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"}
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
PATHS = {"left": "to the left", "right": "to the right", "up": "up", "down": "down"}


def article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def sentence(words: str) -> str:
    return words[0].upper() + words[1:] + "."


def plural(shape: str) -> str:
    return shape + ("es" if shape == "cross" else "s")


def side_of(a: Thing, b: Thing, aspect: float) -> str:
    """Where `a` lies as seen from `b`: left, right, above or below, along the longer distance."""
    dx, dy = (a.x - b.x) * aspect, a.y - b.y
    if abs(dx) > abs(dy):
        return "left" if dx < 0 else "right"
    return "above" if dy < 0 else "below"


def describe(scene: Scene) -> str:
    """The picture in one phrase without its background, e.g. "a large red circle"."""
    if scene.text is not None:
        noun = "number" if scene.text.is_number else "word"
        return f"the {noun} {scene.text.text} in {scene.text.colour}"
    things = scene.things
    if len(things) == 1:
        size = things[0].size
        return article(f"{size} {things[0].name}" if size else things[0].name)
    names = Counter(thing.name for thing in things)
    if len(names) == 1:
        return f"{NUMBERS[len(things)].lower()} {things[0].colour} {plural(things[0].shape)}"
    if len(things) == 2:
        first, second = things
        side = side_of(first, second, scene.aspect)
        if side in ("right", "below"):
            first, second, side = second, first, OPPOSITE[side]
        return f"{article(first.name)} {SIDES[side]} {article(second.name)}"
    return f"{NUMBERS[len(things)].lower()} shapes"


def content(scene: Scene) -> str:
    return sentence(f"{describe(scene)} on {article(scene.background)} background")


def _unique(things: Sequence[Thing], thing: Thing) -> list[str]:
    """Ways to name `thing` that fit no other: "red circle", "circle", "red shape"."""
    names = [thing.name]
    if sum(other.shape == thing.shape for other in things) == 1:
        names.append(thing.shape)
    if sum(other.colour == thing.colour for other in things) == 1:
        names.append(f"{thing.colour} shape")
    return names


def _yes(is_true: bool) -> str:
    return "Yes." if is_true else "No."


def _presence(rng: Random, things: Sequence[Thing], place: str = "") -> Exchange:
    """A yes/no question, true in about half of the cases."""
    thing = rng.choice(things)
    shape, colour = thing.shape, thing.colour
    fate = rng.random()
    if fate < 0.25:
        shape = rng.choice(SHAPES)
    elif fate < 0.5:
        colour = rng.choice(tuple(COLOURS))
    asked = rng.choice((shape, f"{colour} {shape}"))
    is_true = any(asked in (other.shape, other.name) for other in things)
    return Exchange("yes_no", f"Is there {article(asked)}{place}?", _yes(is_true))


def _about_single(rng: Random, scene: Scene) -> list[Exchange]:
    thing = scene.things[0]
    named = rng.choice(("shape", "shape", thing.shape, "object"))
    asked = rng.choice((thing.shape, rng.choice(SHAPES)))
    return [
        Exchange("shape", rng.choice(SHAPE), sentence(article(thing.shape))),
        Exchange("colour", rng.choice(COLOUR).format(named), sentence(thing.colour)),
        Exchange("content", rng.choice(CONTENT), content(scene)),
        Exchange("background", rng.choice(BACKGROUND), sentence(scene.background)),
        _presence(rng, scene.things),
        Exchange("yes_no", f"Is the shape {article(asked)}?", _yes(asked == thing.shape)),
        Exchange("size", rng.choice(("Is the shape large or small?", "How big is the shape?")),
                 sentence(thing.size or "small")),
        Exchange("count", rng.choice(COUNT).format(rng.choice(("shapes", "objects"))), "One."),
    ]  # fmt: skip


def _about_pair(rng: Random, scene: Scene) -> list[Exchange]:
    things = scene.things
    first, second = rng.sample(things, 2)
    side = side_of(first, second, scene.aspect)
    names = rng.choice(_unique(things, first)), rng.choice(_unique(things, second))
    choice = "left or right" if side in ("left", "right") else "above or below"
    link = " of" if side in ("left", "right") else ""
    exchanges = [
        Exchange("position", rng.choice(WHERE).format(*names), sentence(PATHS.get(side, side))),
        Exchange("position", f"Is the {names[0]} {choice}{link} the {names[1]}?", sentence(PATHS.get(side, side))),
        Exchange("position", f"What is {SIDES[side]} the {names[1]}?", sentence(article(first.name))),
        Exchange("content", rng.choice(CONTENT), content(scene)),
        _presence(rng, things),
        Exchange("count", rng.choice(COUNT).format("shapes"), "Two."),
    ]
    if first.shape != second.shape:
        exchanges.append(Exchange("colour", rng.choice(COLOUR).format(first.shape), sentence(first.colour)))
    if first.colour != second.colour:
        question = rng.choice(("What shape is {}?", "Which shape is {}?")).format(first.colour)
        exchanges.append(Exchange("shape", question, sentence(article(first.shape))))
    return exchanges


def _about_group(rng: Random, scene: Scene) -> list[Exchange]:
    things = scene.things
    exchanges = [Exchange("count", rng.choice(COUNT).format(rng.choice(("shapes", "objects"))),
                          sentence(NUMBERS[len(things)]))]  # fmt: skip
    shape, colour = rng.choice(things).shape, rng.choice(things).colour
    same_shape = sum(thing.shape == shape for thing in things)
    same_colour = sum(thing.colour == colour for thing in things)
    exchanges += [
        Exchange("count", rng.choice(COUNT).format(plural(shape)), sentence(NUMBERS[same_shape])),
        Exchange("count", rng.choice(COUNT).format(f"{colour} shapes"), sentence(NUMBERS[same_colour])),
        _presence(rng, things),
        Exchange("background", rng.choice(BACKGROUND), sentence(scene.background)),
    ]
    exchanges.append(Exchange("content", rng.choice(CONTENT), content(scene)))
    if len({thing.name for thing in things}) == 1:
        asked = rng.choice(("What color are the {}?", "What colour are the {}?")).format(plural(shape))
        exchanges.append(Exchange("colour", asked, sentence(colour)))
    return exchanges


def _about_text(rng: Random, scene: Scene) -> list[Exchange]:
    text = scene.text
    assert text is not None
    kind = "digits" if text.is_number else "word"
    special = READ_NUMBER if text.is_number else READ_WORD
    return [
        Exchange(kind, rng.choice(READ), text.text),
        Exchange(kind, rng.choice(special), text.text),
        Exchange("content", rng.choice(CONTENT), content(scene)),
        Exchange("colour", rng.choice(COLOUR).format(rng.choice(("text", kind if kind == "word" else "number"))),
                 sentence(text.colour)),
        Exchange("background", rng.choice(BACKGROUND), sentence(scene.background)),
    ]  # fmt: skip


def about_scene(rng: Random, scene: Scene) -> list[Exchange]:
    """Every kind of question this picture can answer, once or a few times each, in a fixed order."""
    if scene.text is not None:
        return _about_text(rng, scene)
    if len(scene.things) == 1:
        return _about_single(rng, scene)
    if len(scene.things) == 2 and scene.things[0].name != scene.things[1].name:
        return _about_pair(rng, scene)
    return _about_group(rng, scene)


def about_clip(rng: Random, clip: Clip) -> list[Exchange]:
    scene, thing = clip.scene, clip.scene.things[0]
    named = rng.choice(("shape", "object", thing.shape, thing.name))
    told = f"{article(thing.name)} moving {PATHS[clip.direction]} on {article(scene.background)} background"
    return [
        Exchange("motion", rng.choice(MOTION).format(named), sentence(PATHS[clip.direction])),
        Exchange("motion", rng.choice(MOTION).format(rng.choice(("shape", thing.shape))),
                 sentence(PATHS[clip.direction])),
        Exchange("clip_content", rng.choice(CLIP_CONTENT), sentence(told)),
        Exchange("clip_colour", rng.choice(COLOUR).format(rng.choice(("shape", thing.shape))),
                 sentence(thing.colour)),
        Exchange("clip_shape", rng.choice(("What shape is moving?", "Which shape moves?", "What shape is this?")),
                 sentence(article(thing.shape))),
    ]  # fmt: skip


def _only_in(scenes: Sequence[Scene], index: int, rng: Random) -> str | None:
    """A name of something that picture `index` alone shows, or None."""
    shown = [{name for thing in scene.things for name in (thing.name, thing.shape)} for scene in scenes]
    for position, scene in enumerate(scenes):
        if scene.text is not None:
            shown[position].add("number" if scene.text.is_number else "word")
    others = set().union(*(names for position, names in enumerate(shown) if position != index))
    only = sorted(shown[index] - others)
    return rng.choice(only) if only else None


def about_images(rng: Random, scenes: Sequence[Scene]) -> list[Exchange]:
    """Questions over two or three pictures; each scene is one shape, one pair or one print."""
    kind = "several_images"
    noun = rng.choice(("image", "picture"))
    exchanges = [Exchange(kind, f"How many {noun}s are there?", sentence(NUMBERS[len(scenes)]))]
    order = list(range(len(scenes)))
    rng.shuffle(order)
    for index in order:
        ordinal, scene = ORDINALS[index], scenes[index]
        if (name := _only_in(scenes, index, rng)) is not None:
            question = rng.choice(("Which {0} has {1} {2}?", "Which {0} shows {1} {2}?", "In which {0} is {1} {2}?"))
            the = rng.choice(("the", "a"))
            phrase = article(name) if the == "a" else f"the {name}"
            asked = question.format(noun, phrase.split(" ", 1)[0], phrase.split(" ", 1)[1])
            exchanges.append(Exchange(kind, asked, f"The {ordinal} {noun}."))
        told = rng.choice(("What is in the {} {}?", "What does the {} {} show?", "Describe the {} {}."))
        exchanges.append(Exchange(kind, told.format(ordinal, noun), content(scene)))
        if len(scene.things) == 1:
            thing = scene.things[0]
            exchanges += [
                Exchange(kind, f"What color is the shape in the {ordinal} {noun}?", sentence(thing.colour)),
                Exchange(kind, f"What shape is in the {ordinal} {noun}?", sentence(article(thing.shape))),
            ]
        elif scene.text is not None:
            exchanges.append(Exchange(kind, f"What does the text in the {ordinal} {noun} say?", scene.text.text))
    if all(len(scene.things) == 1 for scene in scenes) and len(scenes) == 2:
        a, b = scenes[0].things[0], scenes[1].things[0]
        exchanges.append(Exchange(kind, "Do both images show the same shape?", _yes(a.shape == b.shape)))
        exchanges.append(Exchange(kind, "Do both images show the same color?", _yes(a.colour == b.colour)))
        every = " and ".join(article(scene.things[0].name) for scene in scenes)
        for question in ("What is the content of each image?", "What is in the images?", "What is the image content?"):
            exchanges.append(Exchange(kind, question, sentence(every)))
    return exchanges
