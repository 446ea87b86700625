"""Pieces of text: together they are what decoding all ids gives, and characters come whole."""

from __future__ import annotations

import random

import pytest

from tests import tiny
from trifocal.engine.detokenizer import Detokenizer
from trifocal.tokenizer import Tokenizer, load_tokenizer

_ALPHABET = ["the ", "dog", "\n\n", " ", "é", "日本", "👍🏽", "👩‍👩‍👧", "\u0301", "ﷺ", "a", "\ufffd", "𝒳", "\t"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(str(tiny.write_checkpoint(tmp_path_factory.mktemp("model"))))


def pieces(tokenizer: Tokenizer, ids: list[int], prompt: list[int], *, skip: bool = True) -> list[str]:
    detokenizer = Detokenizer(tokenizer, prompt, skip_special_tokens=skip)
    return [*map(detokenizer.feed, ids), detokenizer.flush()]


def test_pieces_of_any_text_join_to_it(tokenizer: Tokenizer) -> None:
    rng = random.Random(0)
    for _ in range(150):
        text = "".join(rng.choices(_ALPHABET, k=rng.randint(1, 12)))
        ids = tokenizer.encode(text)
        prompt = tokenizer.encode("".join(rng.choices(_ALPHABET, k=rng.randint(0, 4))))
        assert "".join(pieces(tokenizer, ids, prompt)) == tokenizer.decode(ids)


def test_pieces_of_arbitrary_tokens_join_to_their_decoding(tokenizer: Tokenizer) -> None:
    """Bytes that are no UTF-8, characters never finished, special tokens in between."""
    rng = random.Random(1)
    for _ in range(200):
        ids = [rng.randrange(tokenizer.vocab_size) for _ in range(rng.randint(1, 30))]
        for skip in (True, False):
            joined = "".join(pieces(tokenizer, ids, tokenizer.encode("Hello"), skip=skip))
            assert joined == tokenizer.decode(ids, skip_special_tokens=skip)


def test_a_character_of_several_tokens_comes_whole_with_its_last(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("👍!")
    assert len(ids) == 5, "four bytes, a token each"
    assert pieces(tokenizer, ids, [1, 2]) == ["", "", "", "👍", "!", ""]


def test_an_unfinished_character_comes_with_the_flush(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a👍")[:-1]
    assert pieces(tokenizer, ids, []) == ["a", "", "", "", "\ufffd"]


def test_text_does_not_wait_for_later_tokens(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("The quick brown fox\n\njumps 12")
    assert all(pieces(tokenizer, ids, [5])[:-1])
    assert tokenizer.decode(ids) == "The quick brown fox\n\njumps 12"


def test_special_tokens_are_shown_on_request_only(tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode("a"), tiny.token_ids()["<|im_end|>"], *tokenizer.encode("b")]
    assert pieces(tokenizer, ids, []) == ["a", "", "b", ""]
    assert pieces(tokenizer, ids, [], skip=False) == ["a", "<|im_end|>", "b", ""]
