"""The closed world the demonstration model knows: shapes, colours, directions, printed words."""

from __future__ import annotations

SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")

# One centre per colour name; the generator jitters it and keeps the names apart.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 36, 36),
    "green": (34, 150, 58),
    "blue": (38, 72, 214),
    "yellow": (244, 218, 40),
    "orange": (248, 140, 24),
    "purple": (140, 48, 170),
    "black": (18, 18, 18),
    "white": (248, 248, 248),
}

# Backgrounds may also be grey; no shape is, so "grey" only ever names a background.
BACKGROUNDS: dict[str, tuple[int, int, int]] = {**COLOURS, "gray": (140, 140, 140)}

# Pairs that a jittered, compressed picture could confuse or hide: never shape on background.
TOO_CLOSE = frozenset(
    {
        frozenset({"red", "orange"}),
        frozenset({"orange", "yellow"}),
        frozenset({"yellow", "white"}),
        frozenset({"blue", "purple"}),
        frozenset({"black", "purple"}),
        frozenset({"gray", "purple"}),
        frozenset({"gray", "green"}),
        frozenset({"red", "purple"}),
        frozenset({"black", "blue"}),
    }
)

NUMBERS = ("Zero", "One", "Two", "Three", "Four", "Five")
ORDINALS = ("first", "second", "third")
DIRECTIONS = ("left", "right", "up", "down")

WORDS = (
    "CAT", "DOG", "SUN", "HAT", "BUS", "CUP", "BOX", "PEN", "KEY", "MAP", "TOP", "NO", "GO", "YES", "HI", "OK",
    "FISH", "BIRD", "TREE", "MOON", "BOOK", "DOOR", "HAND", "LAMP", "MILK", "RAIN", "ROAD", "SHIP", "SNOW",
    "WIND", "STOP", "OPEN", "EXIT", "HOME", "TIME", "LOVE", "FIRE", "GAME", "JUMP", "QUIZ",
)  # fmt: skip


def can_contrast(foreground: str, background: str) -> bool:
    """Whether `foreground` can be told from `background` after jitter and compression."""
    return foreground != background and frozenset({foreground, background}) not in TOO_CLOSE
