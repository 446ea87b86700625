"""Bytes, pins and drops of the encoder cache."""

from __future__ import annotations

import random

from tests.engine.fake_worker import request
from trifocal.engine.encoder_cache import EncoderCache
from trifocal.engine.sequence import Sequence

A, B, C, D = (letter * 16 for letter in (b"a", b"b", b"c", b"d"))


def seq(name: str = "s") -> Sequence:
    return Sequence(request(name, [2]))


def test_unpinned_entries_go_least_recently_used_first() -> None:
    cache, owner, reader = EncoderCache(30), seq("owner"), seq("reader")
    for content_hash in (A, B, C):
        assert cache.add(owner, content_hash, 10)
    cache.release(owner)
    assert cache.pin(reader, A)
    cache.release(reader)
    assert cache.add(owner, D, 10)
    assert cache.take_dropped() == [B]
    assert cache.take_dropped() == []
    assert [cache.pin(reader, content_hash) for content_hash in (A, B, C, D)] == [True, False, True, True]


def test_pinned_entries_stay_and_what_does_not_fit_beside_them_is_refused() -> None:
    cache, one, two = EncoderCache(30), seq("one"), seq("two")
    assert cache.add(one, A, 20)
    assert cache.pin(two, A)
    assert not cache.add(two, B, 11)
    cache.release(one)
    assert not cache.add(one, B, 11)
    assert cache.take_dropped() == []
    cache.unpin(two, A)
    assert cache.add(one, B, 11)
    assert cache.take_dropped() == [A]
    assert (cache.num_bytes, cache.num_pinned_bytes) == (11, 11)


def test_can_hold_counts_what_is_wanted_and_pinned_once() -> None:
    cache, owner = EncoderCache(30), seq()
    cache.add(owner, A, 20)
    assert cache.can_hold({A: 20, B: 10})
    assert not cache.can_hold({B: 11})
    cache.release(owner)
    assert cache.can_hold({B: 30})


def test_a_dropped_entry_is_nobodys() -> None:
    cache, owner = EncoderCache(30), seq()
    cache.add(owner, A, 20)
    cache.drop(A)
    cache.drop(A)
    assert cache.take_dropped() == [A]
    assert not cache.is_pinned(owner, A)
    assert (cache.num_bytes, cache.num_pinned_bytes) == (0, 0)
    cache.release(owner)
    assert owner.pinned == set()


def test_bytes_add_up_and_never_exceed_the_capacity() -> None:
    rng = random.Random(0)
    cache, seqs = EncoderCache(50), [seq(str(i)) for i in range(4)]
    sizes = {bytes([i]) * 16: rng.randint(1, 30) for i in range(10)}
    held: set[bytes] = set()
    for _ in range(3000):
        who, content_hash = rng.choice(seqs), rng.choice(list(sizes))
        move = rng.random()
        if move < 0.6:
            if not cache.pin(who, content_hash) and cache.add(who, content_hash, sizes[content_hash]):
                held.add(content_hash)
        elif move < 0.9:
            cache.unpin(who, content_hash)
        else:
            cache.release(who)
        held -= set(cache.take_dropped())
        pinned = {key for each in seqs for key in each.pinned}
        assert pinned <= held
        assert cache.num_bytes == sum(sizes[key] for key in held) <= 50
        assert cache.num_pinned_bytes == sum(sizes[key] for key in pinned)
