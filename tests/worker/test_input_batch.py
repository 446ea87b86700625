"""What a step's tensors say, against a position-by-position account of it."""

from __future__ import annotations

import random

import numpy as np
import torch

from trifocal.sampling_params import SamplingParams
from trifocal.types import MediaItem, Prompt, Request, ScheduledNew, ScheduledSeq, Span, StepPlan
from trifocal.worker.input_batch import ForwardBatch, SequenceState, build_batch

BLOCK_SIZE, ROWS = 4, 3


def start(name: str, prompt: Prompt, output: list[int], block_ids: list[int]) -> SequenceState:
    state = SequenceState.start(ScheduledNew(Request(name, prompt, SamplingParams()), output))
    state.block_ids.extend(block_ids)
    return state


def build(states: list[SequenceState], ranges: list[tuple[int, int]], rows: int = ROWS) -> ForwardBatch:
    """A step that computes these positions. Where there are drafts, it was planned for one more, and for a later start:
    as many drafts of the step before were lost."""
    scheduled = []
    for state, (low, high) in zip(states, ranges, strict=True):
        most = len(state.drafts) + 1 if state.drafts else 0
        num_sampled = 1 + most if high == state.num_tokens else 0
        scheduled.append(ScheduledSeq(state.request.request_id, low + most, high - low + most, [], num_sampled, most))
    by_id = {state.request.request_id: state for state in states}
    plan = StepPlan(1, scheduled)
    return build_batch(plan, by_id, block_size=BLOCK_SIZE, position_rows=rows, device=torch.device("cpu"))


def random_prompt(rng: random.Random) -> Prompt:
    token_ids: list[int] = []
    media = []
    for index in range(rng.randint(1, 5)):
        if rng.random() < 0.5:
            token_ids += [rng.randrange(2, 50) for _ in range(rng.randint(1, 6))]
            continue
        length = rng.randint(1, 9)
        is_embed = tuple(rng.random() < 0.7 for _ in range(length)) if rng.random() < 0.5 else None
        span = Span(len(token_ids), length, is_embed)
        media.append(MediaItem("image", bytes([index]) * 16, span, (1,), np.zeros((1, 1), dtype=np.uint8)))
        token_ids += [1] * length
    token_ids = token_ids or [2]
    positions = np.random.default_rng(rng.randrange(99)).integers(0, 99, (ROWS, len(token_ids)))
    return Prompt(token_ids, tuple(media), positions, position_delta=-rng.randrange(5))


def account(state: SequenceState, low: int, high: int) -> list[tuple[int, tuple[int, ...], int]]:
    """Token id, rotary position and slot of each position, one at a time."""
    prompt = state.request.prompt
    known = [*prompt.token_ids, *state.output_token_ids.tolist(), *state.drafts]
    rows = []
    for index in range(low, high):
        if index < len(prompt.token_ids):
            assert prompt.positions is not None
            position = tuple(prompt.positions[:, index].tolist())
        else:
            position = (index + prompt.position_delta,) * ROWS
        rows.append((known[index], position, state.block_ids[index // BLOCK_SIZE] * BLOCK_SIZE + index % BLOCK_SIZE))
    return rows


def embeds_of(prompt: Prompt, index: int) -> tuple[bytes, int] | None:
    for item in prompt.media:
        if item.span.offset <= index < item.span.end:
            takes = item.span.is_embed or (True,) * item.span.length
            at = index - item.span.offset
            return (item.content_hash, sum(takes[:at])) if takes[at] else None
    return None


def test_every_row_of_a_step_is_what_its_position_says() -> None:
    rng = random.Random(0)
    for _ in range(150):
        states, ranges = [], []
        for name in "abcd"[: rng.randint(1, 4)]:
            prompt, output = random_prompt(rng), [rng.randrange(2, 50) for _ in range(rng.randint(0, 6))]
            num_tokens = len(prompt.token_ids) + len(output)
            states.append(start(name, prompt, output, rng.sample(range(100), -(-(num_tokens + 4) // BLOCK_SIZE))))
            low = rng.randrange(num_tokens)
            ranges.append((low, rng.randint(low + 1, num_tokens)))
            if rng.random() < 0.5:
                states[-1].drafts = [rng.randrange(50) for _ in range(rng.randint(1, 3))]
                ranges[-1] = (low, num_tokens)
        batch = build(states, ranges)
        _check_samples(batch, states, ranges)
        _check_media(batch, states, ranges)
        ranges = [(low, high + len(state.drafts)) for state, (low, high) in zip(states, ranges, strict=True)]
        expected = [row for state, (low, high) in zip(states, ranges, strict=True) for row in account(state, low, high)]
        assert batch.token_ids.tolist() == [token_id for token_id, _, _ in expected]
        assert list(map(tuple, batch.positions.T.tolist())) == [position for _, position, _ in expected]
        assert batch.attention.slots.tolist() == [slot for _, _, slot in expected]
        assert batch.attention.query_lens == [high - low for low, high in ranges]
        assert batch.attention.context_lens == [high for _, high in ranges]
        for state, table in zip(states, batch.attention.block_tables.tolist(), strict=True):
            assert table[: len(state.block_ids)] == state.block_ids


def _check_media(batch: ForwardBatch, states: list[SequenceState], ranges: list[tuple[int, int]]) -> None:
    wanted, row = {}, 0
    for state, (low, high) in zip(states, ranges, strict=True):
        for index in range(low, high):
            embed = embeds_of(state.request.prompt, index)
            if embed is not None:
                wanted[row] = (state.request.request_id, *embed)
            row += 1
        row += len(state.drafts)
    found = {}
    for part in batch.media:
        rows = np.arange(row)[part.rows]
        for each, embed_row in zip(rows.tolist(), range(part.embeds.start, part.embeds.stop), strict=True):
            assert each not in found
            found[each] = (part.request_id, part.content_hash, embed_row)
    assert found == wanted


def _check_samples(batch: ForwardBatch, states: list[SequenceState], ranges: list[tuple[int, int]]) -> None:
    ends = np.cumsum([high - low + len(state.drafts) for state, (low, high) in zip(states, ranges, strict=True)])
    last = [i for i, (state, (_, high)) in enumerate(zip(states, ranges, strict=True)) if high == state.num_tokens]
    assert batch.sampled_ids == [states[i].request.request_id for i in last]
    rows = [row for i in last for row in range(ends[i] - 1 - len(states[i].drafts), ends[i])]
    assert batch.sampled_rows.tolist() == rows


def test_without_positions_the_index_is_the_position() -> None:
    state = start("a", Prompt([2, 3, 4]), [5, 6], [7, 1])
    for rows in (1, 3):
        assert build([state], [(1, 5)], rows).positions.tolist() == [[1, 2, 3, 4]] * rows


def test_a_sequence_grows_token_by_token_beyond_its_first_room() -> None:
    state = start("a", Prompt([2, 3]), [], [])
    for token_id in range(1000):
        state.append(token_id)
    assert state.num_output_tokens == 1000
    assert state.output_token_ids.tolist() == list(range(1000))
    assert state.token_ids[:2].tolist() == [2, 3]
