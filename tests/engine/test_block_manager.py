"""Ownership of KV blocks and what a prefix may be reused for."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.fake_worker import PLACEHOLDER, media_item, request
from trifocal.engine.block_manager import BlockManager
from trifocal.engine.sequence import Sequence

RED, BLUE = b"r" * 16, b"b" * 16


def computed(blocks: BlockManager, seq: Sequence) -> Sequence:
    """The sequence with all of its known tokens computed and published."""
    blocks.take_prefix(seq)
    blocks.grow(seq, seq.num_tokens)
    seq.num_computed_tokens = seq.num_tokens
    blocks.publish(seq)
    return seq


def hit(blocks: BlockManager, seq: Sequence) -> int:
    """Tokens that the cache has of a sequence's beginning."""
    num_tokens = blocks.take_prefix(seq)
    blocks.release(seq)
    return num_tokens


def with_picture(content_hash: bytes, offset: int = 2, length: int = 4, salt: str | None = None) -> Sequence:
    token_ids = [PLACEHOLDER] * 12
    return Sequence(request("a", token_ids, media=[media_item(content_hash, offset, length)], salt=salt))


def test_a_prefix_is_whole_blocks_and_leaves_one_token_to_compute() -> None:
    blocks = BlockManager(10, 4)
    computed(blocks, Sequence(request("a", list(range(12)))))
    assert hit(blocks, Sequence(request("b", list(range(12))))) == 8
    assert hit(blocks, Sequence(request("b", list(range(13))))) == 12
    assert hit(blocks, Sequence(request("b", [*range(7), 99, *range(8, 13)]))) == 4
    assert hit(blocks, Sequence(request("b", list(range(1, 13))))) == 0


def test_the_same_tokens_behind_another_beginning_are_another_block() -> None:
    blocks = BlockManager(10, 2)
    computed(blocks, Sequence(request("a", [1, 1, 2, 2, 5])))
    assert hit(blocks, Sequence(request("b", [2, 2, 2, 2, 5]))) == 0
    assert hit(blocks, Sequence(request("b", [1, 1, 2, 2, 6]))) == 4


def test_a_picture_decides_with_its_content_and_place() -> None:
    blocks = BlockManager(10, 4)
    computed(blocks, with_picture(RED))
    assert hit(blocks, with_picture(RED)) == 8
    for other in (with_picture(BLUE), with_picture(RED, offset=1), with_picture(RED, length=5)):
        assert hit(blocks, other) == 0
    assert hit(blocks, Sequence(request("b", [PLACEHOLDER] * 12))) == 0


def test_a_picture_in_a_later_block_leaves_the_earlier_ones_shared() -> None:
    blocks = BlockManager(10, 4)
    computed(blocks, with_picture(RED, offset=6))
    assert hit(blocks, with_picture(BLUE, offset=6)) == 4


def test_salts_share_nothing() -> None:
    blocks = BlockManager(10, 4)
    computed(blocks, with_picture(RED, salt="one"))
    assert hit(blocks, with_picture(RED, salt="one")) == 8
    for salt in ("two", None, "", "one\0"):
        assert hit(blocks, with_picture(RED, salt=salt)) == 0


def test_what_a_prompt_s_keys_depend_on_besides_separates_it() -> None:
    """An adapter's name, say; no other split of the same bytes among salt, rope's choice and this passes for it."""

    def seq(extra: bytes, salt: str | None = None, *, is_long: bool = False) -> Sequence:
        made = request("a", list(range(12)), salt=salt)
        made = Sequence(replace(made, prompt=replace(made.prompt, cache_key_extra=extra)))
        made.begin(is_long=is_long)
        return made

    for first in (seq(b"one", "salt"), seq(b"one", "salt", is_long=True)):
        blocks = BlockManager(20, 4)
        computed(blocks, first)
        long = first.is_long
        assert hit(blocks, seq(b"one", "salt", is_long=long)) == 8
        for other in (seq(b"one", "salt", is_long=not long), seq(b"two", "salt", is_long=long)):
            assert hit(blocks, other) == 0
        for extra, salt in ((b"", "salt"), (b"", "salt\0one"), (b"", "salt\1one"), (b"tone", "sal"), (b"one", None)):
            assert hit(blocks, seq(extra, salt, is_long=long)) == 0


def test_a_salt_need_not_be_valid_unicode() -> None:
    assert BlockManager(2, 2).take_prefix(Sequence(request("a", [1, 2, 3], salt="\ud800"))) == 0


def test_without_prefix_caching_nothing_is_shared() -> None:
    blocks = BlockManager(10, 4, enable_prefix_caching=False)
    computed(blocks, with_picture(RED))
    assert blocks.take_prefix(with_picture(RED)) == 0


def test_released_blocks_keep_their_content_until_they_are_needed_tail_first() -> None:
    blocks = BlockManager(4, 2)
    first = computed(blocks, Sequence(request("a", [1, 2, 3, 4, 5, 6])))
    blocks.release(first)
    assert blocks.num_used == 0
    assert hit(blocks, Sequence(request("b", [1, 2, 3, 4, 5, 6, 7]))) == 6
    other = Sequence(request("c", [9] * 4))
    blocks.grow(other, 4)  # the block never used, then the least recently freed: the tail
    assert hit(blocks, Sequence(request("b", [1, 2, 3, 4, 5, 6, 7]))) == 4


def test_withdrawn_blocks_are_found_no_more_but_a_new_content_is() -> None:
    blocks = BlockManager(8, 2)
    seq = computed(blocks, Sequence(request("a", [1, 2, 3, 4, 5])))
    wrong = list(zip(seq.block_ids, seq.block_hashes, strict=False))
    blocks.withdraw(wrong[1:])
    assert hit(blocks, Sequence(request("b", [1, 2, 3, 4, 5]))) == 2
    blocks.release(seq)
    block_ids = []
    for token_id in range(20, 24):  # every block gets a new content
        filler = computed(blocks, Sequence(request(str(token_id), [token_id] * 4)))
        block_ids += filler.block_ids
    assert set(block_ids) == set(range(8))
    blocks.withdraw(wrong)  # too late: these blocks hold other things now
    assert hit(blocks, Sequence(request("b", [20] * 5))) == 4


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 14)), max_size=40), st.integers(1, 4))
def test_references_add_up(moves: list[tuple[int, int]], block_size: int) -> None:
    """Start, extend or end one of six sequences over a small alphabet of prompts; every block is accounted for."""
    blocks = BlockManager(12, block_size)
    seqs: dict[int, Sequence] = {}
    for name, num_tokens in moves:
        seq = seqs.get(name)
        if seq is not None and num_tokens > 10:
            blocks.release(seqs.pop(name))
            continue
        if seq is None:
            seq = Sequence(request(str(name), [name % 2] * 14))
            seq.num_computed_tokens = blocks.take_prefix(seq)
        num_tokens = max(num_tokens, seq.num_computed_tokens)
        if blocks.can_grow(seq, num_tokens):
            num_free = blocks.num_free
            added = blocks.grow(seq, num_tokens)
            assert blocks.num_free == num_free - len(added)
            seq.num_computed_tokens = num_tokens
            blocks.publish(seq)
            seqs[name] = seq
        else:
            blocks.release(seq)
            seqs.pop(name, None)
        owned = [block for each in seqs.values() for block in each.block_ids]
        assert blocks.num_used == len(set(owned)) == 12 - blocks.num_free
        for block in set(owned):  # shared by equal prompts only
            assert len({each.request.prompt.token_ids[0] for each in seqs.values() if block in each.block_ids}) == 1
