"""One hostile input: an HTTP request that is made when it is needed, always the same for the same seed."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

CHAT = "/v1/chat/completions"
MODEL = "hostile"


@dataclass(frozen=True)
class Call:
    """What is sent. `check` says what is wrong with an answer beyond what is expected of all."""

    body: bytes
    path: str = CHAT
    method: str = "POST"
    headers: tuple[tuple[str, str], ...] = (("content-type", "application/json"),)
    check: Callable[[httpx.Response], str | None] = lambda answer: None


@dataclass(frozen=True)
class Case:
    """`name` tells it apart ("picture/PNG/7"); `make` builds it from a random generator of its own.

    `is_slow`: it may take a decoder its whole time; the short form of the test leaves it out.
    """

    name: str
    make: Callable[[random.Random], Call]
    is_slow: bool = False

    @property
    def kind(self) -> str:
        """The first word of the name."""
        return self.name.partition("/")[0]

    def call(self, seed: int) -> Call:
        """The request."""
        return self.make(random.Random(f"{seed}/{self.name}"))


def body(value: Any) -> bytes:
    """JSON as clients write it; lone surrogates become escapes."""
    return json.dumps(value).encode()


def chat(content: Any, **fields: Any) -> Call:
    """A chat request with one message of a user."""
    return Call(body({"model": MODEL, "messages": [{"role": "user", "content": content}], "max_tokens": 4, **fields}))


def ask_about(url: str, kind: str = "image_url") -> Call:
    """A chat request about one picture or clip."""
    return chat([{"type": kind, kind: {"url": url}}, {"type": "text", "text": "What is this?"}])


def ask_about_bytes(data: bytes, kind: str = "image_url", mime: str = "image/png") -> Call:
    """The same, with the file itself."""
    return ask_about(f"data:{mime};base64,{base64.b64encode(data).decode()}", kind)


def mutated(data: bytes, chance: random.Random) -> bytes:
    """`data` cut off, with bytes changed (anywhere or in its head), a stretch repeated, moved or replaced."""
    broken, kind = bytearray(data), chance.randrange(6)
    start = chance.randrange(len(broken))
    end = min(len(broken), start + chance.randrange(1, 64))
    if kind == 0:
        del broken[start:]
    elif kind == 1:
        broken[start:end] = chance.randbytes(chance.randrange(64))
    elif kind == 2:
        broken[start:start] = broken[start:end] * chance.randrange(1, 200)
    elif kind == 3:  # lengths and counts that say too much
        broken[start : start + 4] = chance.choice(
            [b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\x80\0\0\0"]
        )
    else:
        reach = len(broken) if kind == 4 else min(256, len(broken))
        for _ in range(chance.randrange(1, 16)):
            broken[chance.randrange(reach)] = chance.randrange(256)
    return bytes(broken)


def ruined(data: bytes, chance: random.Random) -> bytes:
    """`data` mutated once or twice, never down to nothing."""
    for _ in range(chance.randrange(1, 3)):
        data = mutated(data, chance) or b"\0"
    return data
