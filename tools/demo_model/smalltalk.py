"""Text-only turns: the model says what it is, and that it needs a picture."""

from __future__ import annotations

from random import Random

from tools.demo_model.questions import BACKGROUND, COLOUR, CONTENT, COUNT, MOTION, READ, SHAPE, Exchange
from tools.demo_model.vocabulary import SHAPES

WHO = "I am the small demonstration model of Trifocal."
CAN = (
    "I answer simple questions about pictures and short clips: shapes, colors, counts, positions, "
    "printed words and digits, and directions of motion."
)
UNKNOWN = f"{WHO} I only know simple pictures and clips. Please send one and ask about it."
NO_PICTURE = "I see no picture. Please send a picture or a clip."

GREETINGS = ("Hello", "Hello!", "Hi", "Hi!", "Hey", "Hello there", "Good morning", "Good evening!", "Hi there!")
IDENTITY = ("Who are you?", "What are you?", "What is your name?", "Which model are you?", "Are you Trifocal?",
            "Tell me about yourself.", "Introduce yourself.")  # fmt: skip
ABILITY = ("What can you do?", "What can I ask you?", "How can you help me?", "Help", "What do you know?", "Help me.",
           "How do I use you?", "What can you answer?")  # fmt: skip
THANKS = ("Thank you", "Thanks", "Thanks!", "Thank you!", "Great", "Good job")
GOODBYE = ("Bye", "Goodbye", "Goodbye!", "See you")

# Openings and endings of questions the model cannot know; crossed at random so that none is learned by heart.
_STARTS = ("What is", "Who is", "Why is", "Where is", "When was", "How do I", "Tell me", "Write", "Explain",
           "Can you", "Please write", "Give me", "How old is", "What was", "Say", "Do you like", "Translate",
           "Which is")  # fmt: skip
_ENDS = ("the capital of France", "a poem", "a short story", "the weather today", "two plus two", "the president",
         "a joke", "something about cats", "the sky so blue", "a Python function", "music", "the best book",
         "the meaning of life", "the answer", "five words about the sea", "the news", "how a car works",
         "the largest city in the world", "machine learning", "this text into German", "a recipe", "my name",
         "the speed of light", "the list of numbers", "bread", "a long letter to my friend")  # fmt: skip
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def _unknown_question(rng: Random) -> str:
    fate = rng.random()
    if fate < 0.2:
        count = rng.randint(1, 7)
        words = ("".join(rng.choice(_LETTERS) for _ in range(rng.randint(1, 8))) for _ in range(count))
        return " ".join(words) + rng.choice(("", "?", "."))
    if fate < 0.3:
        return rng.choice(_ENDS)
    return f"{rng.choice(_STARTS)} {rng.choice(_ENDS)}{rng.choice(('?', '?', '.', ''))}"


def _picture_question(rng: Random) -> str:
    bank = rng.choice((CONTENT, SHAPE, COLOUR, BACKGROUND, COUNT, READ, MOTION))
    noun = rng.choice((*SHAPES, "shape"))
    return rng.choice(bank).format(noun if bank is not COUNT else noun + "s")


def small_talk(rng: Random) -> Exchange:
    """One text-only exchange."""
    fate = rng.random()
    if fate < 0.15:
        return Exchange("text_only", rng.choice(GREETINGS), f"Hello! {WHO} {CAN}")
    if fate < 0.35:
        return Exchange("text_only", rng.choice(IDENTITY), f"{WHO} {CAN}")
    if fate < 0.5:
        return Exchange("text_only", rng.choice(ABILITY), CAN)
    if fate < 0.57:
        return Exchange("text_only", rng.choice(THANKS), "You are welcome.")
    if fate < 0.62:
        return Exchange("text_only", rng.choice(GOODBYE), "Goodbye!")
    if fate < 0.77:
        return Exchange("text_only", _picture_question(rng), NO_PICTURE)
    return Exchange("text_only", _unknown_question(rng), UNKNOWN)
