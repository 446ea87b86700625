"""Stop strings against their definition: generation ends with the piece that completes one."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from trifocal.engine.stop import StopStrings

_stops = st.lists(st.text("abc", min_size=1, max_size=4), max_size=4)


def definition(pieces: list[str], stops: list[str], *, include: bool) -> tuple[str, str | None]:
    """What the reader may see, and the string that matched: earliest first, the longest of those that begin there."""
    text = ""
    for piece in pieces:
        text += piece
        found = [(text.find(stop), -len(stop), stop) for stop in stops if stop in text]
        if found:
            at, _, stop = min(found)
            return text[: at + len(stop) if include else at], stop
    return text, None


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text("abc", max_size=4), max_size=12), _stops, st.booleans())
@example(["a", "aab"], ["aab"], False)
@example(["xa", "b", "c"], ["abd", "bc"], False)
def test_the_stream_is_the_definition(pieces: list[str], stops: list[str], include: bool) -> None:
    shown, matched = definition(pieces, stops, include=include)
    stream = StopStrings(stops, include_in_output=include)
    seen = ""
    for piece in pieces:
        seen += stream.feed(piece)
        assert shown.startswith(seen), "showed what turned out to be part of a stop string"
        if stream.matched is not None:
            break
    assert seen + stream.flush() == shown
    assert stream.matched == matched


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=12), _stops)
def test_nothing_is_held_back_that_cannot_begin_a_stop_string(pieces: list[str], stops: list[str]) -> None:
    stream, text, seen = StopStrings(stops), "", ""
    for piece in pieces:
        text += piece
        seen += stream.feed(piece)
        if stream.matched is not None:
            return
        held = text[len(seen) :]
        assert not held or any(stop.startswith(held) for stop in stops)


def test_after_a_match_nothing_comes_out() -> None:
    stream = StopStrings(["stop"])
    assert stream.feed("go stop go") == "go "
    assert stream.feed("more") == stream.flush() == ""


def test_text_that_comes_too_early_to_stop_passes() -> None:
    stream = StopStrings(["ab"])
    assert stream.pass_through("xaby a") == "xaby a"
    assert stream.feed("b") == "b", "a stop string does not begin in text that was passed through"
    assert stream.feed("cab") == "c"
    assert stream.matched == "ab"
