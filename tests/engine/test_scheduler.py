"""The scheduler, case by case; `test_scheduler_fuzz.py` has the rest."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from time import perf_counter

import numpy as np
import pytest

from tests.engine.fake_worker import PLACEHOLDER, FakeWorker, make_limits, media_item, oracle, prompt_logprobs, request
from trifocal.engine.block_manager import BlockManager
from trifocal.engine.encoder_cache import EncoderCache
from trifocal.engine.limits import Limits
from trifocal.engine.scheduler import Scheduler
from trifocal.errors import RequestError
from trifocal.sampling_params import SamplingParams
from trifocal.types import STEP_TOKEN_BOUNDS, Prompt, Request, StepPlan, StepResult, TokenLogprobs, TokenOutput

RED, BLUE = b"r" * 16, b"b" * 16


def make(**changes: object) -> tuple[Scheduler, FakeWorker]:
    limits = make_limits(**changes)
    return _scheduler(limits), FakeWorker(limits)


def _scheduler(limits: Limits) -> Scheduler:
    blocks = BlockManager(limits.num_blocks, limits.block_size)
    return Scheduler(limits, blocks, EncoderCache(limits.encoder_cache_bytes))


def plan_of(scheduler: Scheduler) -> StepPlan:
    plan = scheduler.schedule()
    assert plan is not None
    return plan


def finish(scheduler: Scheduler, worker: FakeWorker) -> dict[str, list[TokenOutput]]:
    """Step by step, one after the other, until nothing is left."""
    outputs: dict[str, list[TokenOutput]] = {}
    while (plan := scheduler.schedule()) is not None:
        for output in scheduler.update(plan, worker.execute(plan)):
            outputs.setdefault(output.request_id, []).append(output)
    assert not scheduler.has_work
    return outputs


def picture_request(request_id: str, content_hash: bytes, **params: object) -> Request:
    """Two tokens, a picture of eight, two tokens."""
    token_ids = [2, 3, *[PLACEHOLDER] * 8, 4, 5]
    return request(request_id, token_ids, media=[media_item(content_hash, 2, 8)], **params)


def test_a_long_prompt_is_computed_in_chunks_and_the_last_one_samples() -> None:
    scheduler, worker = make(max_num_batched_tokens=4)
    scheduler.add(request("a", [2, 3, 4, 5, 6, 7, 8, 9, 10], max_tokens=1))
    seen = []
    while (plan := scheduler.schedule()) is not None:
        seen += [(seq.start, seq.num_tokens, seq.num_sampled_rows) for seq in plan.scheduled]
        scheduler.update(plan, worker.execute(plan))
    assert seen == [(0, 4, 0), (4, 4, 0), (8, 1, 1)]


def test_decodes_come_before_prefill() -> None:
    scheduler, worker = make(max_num_batched_tokens=4)
    scheduler.add(request("a", [2, 3], max_tokens=5))
    plan = plan_of(scheduler)
    scheduler.add(request("b", list(range(2, 12)), max_tokens=5))
    scheduler.update(plan, worker.execute(plan))
    plan = plan_of(scheduler)
    assert [(seq.request_id, seq.num_tokens) for seq in plan.scheduled] == [("a", 1), ("b", 3)]


def test_the_next_step_is_planned_before_the_token_is_known_and_not_past_the_last() -> None:
    scheduler, worker = make()
    scheduler.add(request("a", [2, 3, 4], max_tokens=2))
    first, second = plan_of(scheduler), plan_of(scheduler)
    assert [(seq.start, seq.num_tokens) for seq in second.scheduled] == [(3, 1)]
    assert scheduler.schedule() is None
    outputs = [scheduler.update(plan, worker.execute(plan)) for plan in (first, second)]
    assert [output.finish_reason for step in outputs for output in step] == [None, "length"]


def chosen(plan: StepPlan, *token_ids: int) -> StepResult:
    """What a worker says that chose these for request "a"."""
    return StepResult(
        plan.step_id, {"a": list(token_ids)}, {"a": [TokenLogprobs([each], [0.0], 1) for each in token_ids]}
    )


def test_room_for_drafts_is_kept_and_given_back() -> None:
    """Two steps ahead of what is known: blocks for all drafts of both, of which the first one keeps none."""
    scheduler, _ = make(block_size=2, max_drafts=3)
    scheduler.add(request("a", [2, 3, 4], max_tokens=20))
    first, second = plan_of(scheduler), plan_of(scheduler)
    seqs = [*first.scheduled, *second.scheduled]
    assert [(seq.start, seq.num_tokens, seq.num_sampled_rows) for seq in seqs] == [(0, 6, 4), (6, 4, 4)]
    assert [seq.max_drafts for seq in seqs] == [3, 3]
    assert scheduler.stats().kv_blocks_used == 5
    assert scheduler.update(first, chosen(first, 7))[0].token_ids == [7]
    assert scheduler.stats().kv_blocks_used == 4, "positions 0 .. 6 and 3 .. 7"
    third = plan_of(scheduler)
    assert [(seq.start, len(seq.new_block_ids)) for seq in third.scheduled] == [(7, 2)]
    assert scheduler.update(second, chosen(second, 8, 9, 10, 11))[0].token_ids == [8, 9, 10, 11]
    assert scheduler.update(third, chosen(third, 12, 13))[0].token_ids == [12, 13]
    assert scheduler.stats().kv_blocks_used == 5, "nine tokens that are computed"
    assert scheduler.stats().num_generation_tokens == 7


def test_tokens_behind_the_one_that_ends_a_sequence_are_cut() -> None:
    for params, tokens, reason in (
        ({"max_tokens": 9, "stop_ids": [5]}, [4, 5], "stop"),
        ({"max_tokens": 9, "stop_ids": [5], "min_tokens": 2}, [4, 5, 6, 5], "stop"),
        ({"max_tokens": 3}, [4, 5, 6], "length"),
    ):
        scheduler, _ = make(max_drafts=4)
        scheduler.add(request("a", [2, 3], **params))  # type: ignore[arg-type]
        plan = plan_of(scheduler)
        (output,) = scheduler.update(plan, chosen(plan, 4, 5, 6, 5))
        assert (output.token_ids, output.finish_reason) == (tokens, reason)
        assert [each.token_ids[0] for each in output.logprobs or ()] == tokens
        assert scheduler.stats().kv_blocks_used == 0


def test_drafts_are_not_planned_where_they_cannot_be_kept() -> None:
    for limits, params, expected in (
        ({}, {"max_tokens": 3}, 2),  # behind the limit on tokens
        ({"max_num_batched_tokens": 4}, {}, 1),  # beyond the step's budget
        ({"short_context": 4}, {}, 1),  # where other frequencies begin
        ({"num_blocks": 2}, {"max_tokens": None}, 4),
        ({"num_blocks": 1}, {"max_tokens": None}, 0),  # beyond the context
        ({}, {"max_tokens": 0, "prompt_logprobs": 0}, 0),
    ):
        scheduler, _ = make(**{"max_drafts": 4, **limits})  # type: ignore[arg-type]
        scheduler.add(request("a", [2, 3, 4], **{"max_tokens": 9, **params}))  # type: ignore[arg-type]
        assert [seq.max_drafts for seq in plan_of(scheduler).scheduled] == [expected]


def test_a_prompt_alone_ends_without_a_token_and_may_fill_the_context() -> None:
    scheduler, worker = make(max_model_len=8, max_num_batched_tokens=5)
    alone = request("a", list(range(2, 10)), max_tokens=0, prompt_logprobs=0)
    scheduler.add(alone)
    (output,) = finish(scheduler, worker)["a"]
    assert (output.token_ids, output.finish_reason, output.prompt_logprobs) == ([], "length", prompt_logprobs(alone))
    scheduler.add(request("b", list(range(2, 10)), max_tokens=0, prompt_logprobs=0))
    assert plan_of(scheduler).scheduled[0].start == 0, "hidden states are not cached"


def test_a_stop_token_ends_a_sequence_and_the_step_behind_it_is_ignored() -> None:
    scheduler, worker = make()
    scheduler.add(request("a", [2, 3, 4], stop_ids=range(97), max_tokens=9, min_tokens=1))
    first, second = plan_of(scheduler), plan_of(scheduler)
    assert scheduler.update(first, worker.execute(first))[0].finish_reason is None  # min_tokens
    third = plan_of(scheduler)
    (output,) = scheduler.update(second, worker.execute(second))
    assert (output.finish_reason, output.stop_reason) == ("stop", output.token_ids[0])
    assert scheduler.update(third, worker.execute(third)) == []
    assert scheduler.stats().kv_blocks_used == 0


@pytest.mark.parametrize("max_tokens", [None, 9, 12])
def test_a_sequence_ends_where_the_context_does(max_tokens: int | None) -> None:
    scheduler, worker = make(num_blocks=6, block_size=2, max_model_len=64)
    scheduler.add(request("a", [2, 3, 4, 5], max_tokens=max_tokens))
    outputs = finish(scheduler, worker)["a"]
    assert (len(outputs), outputs[-1].finish_reason) == (8, "length")


def test_the_newest_is_preempted_and_goes_on_where_it_was() -> None:
    scheduler, worker = make(num_blocks=6, block_size=2, max_model_len=12)
    requests = [request(name, [token, 3, 4], max_tokens=9) for name, token in (("old", 5), ("new", 6))]
    for each in requests:
        scheduler.add(each)
    outputs = finish(scheduler, worker)
    assert scheduler.stats().num_preemptions > 0
    assert list(outputs["old"])[-1].finish_reason == "length"
    for each in requests:
        assert [output.token_ids[0] for output in outputs[each.request_id]] == oracle(each)[0]


def test_equal_prompts_share_blocks_in_the_same_step() -> None:
    scheduler, _ = make(block_size=2)
    for name in ("a", "b"):
        scheduler.add(request(name, [2, 3, 4, 5, 6], max_tokens=1))
    first, second = plan_of(scheduler).scheduled
    assert (first.start, second.start) == (0, 4)
    assert second.new_block_ids[:2] == first.new_block_ids[:2]


def test_cached_tokens_are_those_of_the_first_start() -> None:
    scheduler, worker = make(num_blocks=6, block_size=2, max_model_len=12)
    scheduler.add(request("old", [5, 3, 4], max_tokens=9))
    scheduler.add(request("new", [6, 3, 4], max_tokens=9))
    outputs = finish(scheduler, worker)
    stats = scheduler.stats()
    assert stats.num_preemptions > 0
    assert {output.num_cached_tokens for output in outputs["new"]} == {0}
    assert stats.num_prompt_tokens == 6


def test_outputs_tell_when_their_sequence_first_began_and_how_often_it_began_again() -> None:
    scheduler, worker = make(num_blocks=6, block_size=2, max_model_len=12)
    before = perf_counter()
    scheduler.add(request("old", [5, 3, 4], max_tokens=9))
    scheduler.add(request("new", [6, 3, 4], max_tokens=9))
    plan = plan_of(scheduler)
    began = perf_counter()
    first = {output.request_id: output for output in scheduler.update(plan, worker.execute(plan))}
    rest = finish(scheduler, worker)
    assert before < first["old"].scheduled_at <= first["new"].scheduled_at < began
    assert {output.scheduled_at for output in rest["new"]} == {first["new"].scheduled_at}, "preemption changes nothing"
    again = [output.num_preemptions for output in rest["new"]]
    assert first["new"].num_preemptions == 0 and again == sorted(again)
    assert again[-1] == scheduler.stats().num_preemptions > 0 == rest["old"][-1].num_preemptions


def test_steps_are_counted_by_their_tokens() -> None:
    scheduler, worker = make(max_num_batched_tokens=20)
    scheduler.add(request("a", [2] * 30, max_tokens=3))  # 20, 10, 1 and 1
    finish(scheduler, worker)
    stats = scheduler.stats()
    assert dict(zip((*STEP_TOKEN_BOUNDS, None), stats.steps_by_tokens, strict=True)) == dict.fromkeys(
        (*STEP_TOKEN_BOUNDS, None), 0
    ) | {1: 2, 16: 1, 32: 1}
    assert (stats.num_steps, stats.num_step_tokens) == (4, 32)


def test_a_second_question_on_a_picture_costs_no_encoding() -> None:
    scheduler, worker = make()
    scheduler.add(picture_request("a", RED, max_tokens=1))
    finish(scheduler, worker)
    scheduler.add(request("b", [9, *[PLACEHOLDER] * 8], media=[media_item(RED, 1, 8)], max_tokens=1))
    finish(scheduler, worker)
    stats = scheduler.stats()
    assert (worker.num_encoded, stats.num_media_encoded, stats.encoder_hits) == (1, 1, 1)


def test_a_picture_shown_twice_leaves_room_for_another_between() -> None:
    scheduler, worker = make(encoder_cache_bytes=16, max_num_batched_tokens=8)  # one picture at a time
    media = [media_item(RED, 0, 8), media_item(BLUE, 8, 8), media_item(RED, 16, 8)]
    lonely = request("a", [PLACEHOLDER] * 24, media=media, max_tokens=3)
    scheduler.add(lonely)
    assert [output.token_ids[0] for output in finish(scheduler, worker)["a"]] == oracle(lonely)[0]
    assert worker.num_encoded == 3


def test_two_that_wait_for_each_other() -> None:
    """The older one has to wait for room for its second picture, which the younger one holds, which lacks blocks."""
    scheduler, worker = make(
        block_size=2, num_blocks=5, max_model_len=10, max_num_batched_tokens=6, encoder_cache_bytes=8
    )
    media = [media_item(RED, 0, 4), media_item(BLUE, 4, 4)]
    requests = [request(name, [PLACEHOLDER] * 8, media=media, salt=name, max_tokens=2) for name in ("old", "new")]
    for each in requests:
        scheduler.add(each)
    outputs = finish(scheduler, worker)
    assert scheduler.stats().num_preemptions > 0
    for each in requests:
        assert [output.token_ids[0] for output in outputs[each.request_id]] == oracle(each)[0]


def test_an_id_can_be_used_again_while_its_old_step_runs() -> None:
    scheduler, worker = make()
    scheduler.add(request("a", [2, 3, 4], max_tokens=3))
    running = plan_of(scheduler)
    scheduler.abort("a")
    again = request("a", [5, 6], max_tokens=3)
    scheduler.add(again)
    plan = plan_of(scheduler)
    assert scheduler.update(running, worker.execute(running)) == []
    outputs = scheduler.update(plan, worker.execute(plan))
    assert outputs[0].token_ids == oracle(again)[0][:1]


def test_workers_are_told_of_the_last_end_by_a_step_of_its_own() -> None:
    """Else they would keep the sequence, and with it its pixels, until somebody asks for something else."""
    scheduler, worker = make(encoder_cache_bytes=16)
    scheduler.add(picture_request("a", RED, max_tokens=1))
    plan = plan_of(scheduler)
    scheduler.update(plan, worker.execute(plan))
    assert scheduler.stats().num_running == 0 and scheduler.stats().worker_sequences == 1
    assert scheduler.has_work
    last = plan_of(scheduler)
    assert (last.scheduled, last.new, last.encode, last.finished) == ([], [], [], ["a"])
    assert scheduler.update(last, worker.execute(last)) == []
    stats = scheduler.stats()
    assert (stats.worker_sequences, stats.worker_embeds, stats.encoder_items) == (0, 1, 1)
    assert stats.num_steps == 1, "nothing was computed"
    assert scheduler.schedule() is None and not scheduler.has_work


@pytest.mark.parametrize("is_running", [True, False])
def test_workers_are_told_of_an_abort(is_running: bool) -> None:
    scheduler, worker = make()
    scheduler.add(request("a", [2, 3, 4], max_tokens=3))
    plan = plan_of(scheduler)
    result = worker.execute(plan)
    if not is_running:
        scheduler.update(plan, result)
    scheduler.abort("a")
    last = plan_of(scheduler)
    assert (last.scheduled, last.finished) == ([], ["a"])
    if is_running:
        assert scheduler.update(plan, result) == []
    scheduler.update(last, worker.execute(last))
    assert not scheduler.has_work and scheduler.stats().worker_sequences == 0


def test_a_request_that_never_ran_is_no_business_of_the_workers() -> None:
    scheduler, _ = make()
    scheduler.add(request("a", [2, 3, 4], max_tokens=3))
    scheduler.abort("a")
    assert scheduler.schedule() is None and not scheduler.has_work


def test_workers_are_told_of_embeddings_that_failed_last() -> None:
    scheduler, worker = make()
    scheduler.add(picture_request("a", RED))
    plan = plan_of(scheduler)
    worker.execute(plan)
    scheduler.update(plan, _fail_encoding(plan))
    last = plan_of(scheduler)
    assert (last.scheduled, last.finished, last.free_embeds) == ([], ["a"], [RED])
    scheduler.update(last, worker.execute(last))
    stats = scheduler.stats()
    assert (stats.worker_sequences, stats.worker_embeds, stats.encoder_items) == (0, 0, 0)


def test_an_id_in_use_is_refused() -> None:
    scheduler, _ = make()
    scheduler.add(request("a", [2]))
    with pytest.raises(RequestError, match="'a' is already in use"):
        scheduler.add(request("a", [2]))


def test_a_sequence_starts_again_once_when_it_outgrows_the_short_factors() -> None:
    """Not before its token in flight is known, and then at once, from its first token."""
    scheduler, worker = make(short_context=4, block_size=2)
    lonely = request("a", [2, 3, 4], max_tokens=5)
    scheduler.add(lonely)
    first, second = plan_of(scheduler), plan_of(scheduler)  # of three tokens, and of four
    assert [new.is_long for new in first.new] == [False]
    outputs = scheduler.update(first, worker.execute(first))
    assert scheduler.schedule() is None, "the fifth token is in flight"
    outputs += scheduler.update(second, worker.execute(second))
    third = plan_of(scheduler)
    assert (third.finished, [(seq.start, seq.num_tokens) for seq in third.scheduled]) == (["a"], [(0, 5)])
    assert [(new.is_long, len(new.output_token_ids)) for new in third.new] == [(True, 2)]
    outputs += scheduler.update(third, worker.execute(third))
    outputs += finish(scheduler, worker)["a"]
    assert [output.token_ids[0] for output in outputs] == oracle(lonely, short_context=4)[0]
    assert scheduler.stats().num_preemptions == 1


def test_a_sequence_that_ends_at_the_border_does_not_start_again() -> None:
    scheduler, worker = make(short_context=4)
    scheduler.add(request("a", [2, 3, 4], max_tokens=2))
    assert len(finish(scheduler, worker)["a"]) == 2
    assert scheduler.stats().num_preemptions == 0


def test_who_outgrows_the_short_factors_goes_before_those_who_wait() -> None:
    scheduler, worker = make(short_context=4, max_num_seqs=1)
    for name in ("a", "b"):
        scheduler.add(request(name, [2, 3, 4], max_tokens=4))
    steps = steps_of(scheduler, worker, seconds=1.0)
    assert steps == [["a"]] * 4 + [["b"]] * 4


def test_blocks_of_long_sequences_are_found_by_long_ones_alone() -> None:
    scheduler, worker = make(short_context=8, block_size=2)
    for name, num_tokens in (("short", 7), ("long", 10), ("short again", 8), ("long again", 9)):
        scheduler.add(request(name, list(range(2, 2 + num_tokens)), max_tokens=1))
        plan = plan_of(scheduler)
        starts = [(seq.request_id, seq.start) for seq in plan.scheduled]
        assert starts == [(name, {"short again": 6, "long again": 8}.get(name, 0))]
        scheduler.update(plan, worker.execute(plan))


def test_rotary_positions_decide_not_tokens() -> None:
    """A picture may count for less positions than it has tokens."""
    scheduler, _ = make(short_context=4)
    prompt = Prompt([2, 3, 4, 5, 6], positions=np.array([[0, 1, 1, 1, 2]]), position_delta=-2)
    scheduler.add(Request("a", prompt, SamplingParams(max_tokens=9)))
    is_long = []
    for _ in range(4):
        plan = plan_of(scheduler)
        is_long += [new.is_long for new in plan.new]
        result = StepResult(plan.step_id, {"a": [5]})
        scheduler.update(plan, result)
    assert is_long == [False, True] and scheduler.stats().num_preemptions == 1


def _fail_encoding(plan: StepPlan) -> StepResult:
    errors = {job.request_id: "the image could not be encoded" for job in plan.encode}
    return StepResult(plan.step_id, {}, errors=errors, failed_media=frozenset(job.content_hash for job in plan.encode))


def test_a_picture_that_fails_before_anybody_needs_it_is_encoded_anew() -> None:
    """The step that encodes it computes a separator of its span and no place of an embedding: nobody has failed yet."""
    scheduler, worker = make(max_num_batched_tokens=3)
    lonely = request("a", [2, 3, *[PLACEHOLDER] * 3], media=[media_item(RED, 2, (False, True, True))], max_tokens=2)
    scheduler.add(lonely)
    plan = plan_of(scheduler)
    assert [job.content_hash for job in plan.encode] == [RED]
    worker.execute(plan)
    del worker.embeds[RED]
    assert scheduler.update(plan, StepResult(plan.step_id, {}, failed_media=frozenset([RED]))) == []
    assert [output.token_ids[0] for output in finish(scheduler, worker)["a"]] == oracle(lonely)[0]
    assert worker.num_encoded == 2


@pytest.mark.parametrize("leaves", ["stays", "is aborted"])
def test_what_a_failed_picture_spoilt_is_never_used_again(leaves: str) -> None:
    scheduler, _ = make()
    scheduler.add(picture_request("a", RED))
    plan = plan_of(scheduler)
    if leaves == "is aborted":
        scheduler.abort("a")
    outputs = scheduler.update(plan, _fail_encoding(plan))
    assert [output.finish_reason for output in outputs] == (["error"] if leaves == "stays" else [])
    scheduler.add(picture_request("later", RED))
    plan = plan_of(scheduler)
    assert plan.scheduled[0].start == 0
    assert [job.content_hash for job in plan.encode] == [RED]
    assert plan.free_embeds == [RED]


def test_who_took_spoilt_blocks_fails_too_and_others_do_not() -> None:
    scheduler, worker = make()
    scheduler.add(picture_request("a", RED, max_tokens=4))
    scheduler.add(picture_request("same", RED, max_tokens=4))
    scheduler.add(picture_request("other", BLUE, max_tokens=4))
    plan = plan_of(scheduler)
    meanwhile = picture_request("late", RED, max_tokens=4)
    scheduler.add(meanwhile)
    running = plan_of(scheduler)  # takes the blocks of "a" while they are being written
    assert any(seq.request_id == "late" and seq.start == 8 for seq in running.scheduled)
    good = worker.execute(plan)
    token = {"other": good.token_ids["other"]}
    errors = {"a": "the image could not be encoded"}
    outputs = scheduler.update(plan, StepResult(plan.step_id, token, errors=errors, failed_media=frozenset([RED])))
    assert {output.request_id: output.finish_reason for output in outputs} == {
        "a": "error", "same": "error", "late": "error", "other": None,
    }  # fmt: skip
    assert [out.request_id for out in scheduler.update(running, worker.execute(running))] == ["other"]


def test_a_good_picture_beside_a_failed_one_stays_good() -> None:
    scheduler, worker = make()
    media = [media_item(RED, 0, 8), media_item(BLUE, 8, 8)]
    scheduler.add(request("both", [PLACEHOLDER] * 16, media=media, max_tokens=4))
    plan = plan_of(scheduler)
    sharing = request("red", [PLACEHOLDER] * 10, media=media[:1], max_tokens=4)
    scheduler.add(sharing)
    running = plan_of(scheduler)  # takes the blocks of the first picture while they are being written
    assert [(seq.request_id, seq.start) for seq in running.scheduled][-1] == ("red", 8)
    worker.execute(plan)
    failed = StepResult(plan.step_id, {}, errors={"both": "broken"}, failed_media=frozenset([BLUE]))
    assert [output.request_id for output in scheduler.update(plan, failed)] == ["both"]
    outputs = scheduler.update(running, worker.execute(running))
    outputs += finish(scheduler, worker)["red"]
    assert [output.token_ids[0] for output in outputs if output.request_id == "red"] == oracle(sharing)[0]
    assert worker.num_encoded == 2, "the good one was kept"


def test_a_request_goes_on_behind_what_it_has_said_already() -> None:
    """As after the death of an engine: the old output is output, not prompt."""
    whole = request("a", [2, 3, 4], max_tokens=9, min_tokens=6, stop_ids=range(97))
    tokens, reason = oracle(whole)
    scheduler, worker = make()
    scheduler.add(replace(whole, output_token_ids=tuple(tokens[:4])))
    outputs = finish(scheduler, worker)["a"]
    assert [output.token_ids[0] for output in outputs] == tokens[4:]
    assert outputs[-1].finish_reason == reason == "stop"
    assert len(tokens) == 7, "min_tokens counts the old output as well"


def test_bad_logits_of_one_request_leave_its_neighbours_their_picture() -> None:
    scheduler, worker = make(max_num_batched_tokens=16)
    scheduler.add(picture_request("a", RED, max_tokens=4))
    plan = plan_of(scheduler)
    scheduler.update(plan, worker.execute(plan))
    sharing = picture_request("b", RED, max_tokens=4)
    scheduler.add(sharing)
    plan = plan_of(scheduler)  # "a" decodes, "b" starts behind the cached picture
    good = worker.execute(plan)
    errors = {"a": "the model produced no valid probabilities"}
    outputs = scheduler.update(plan, StepResult(plan.step_id, {"b": good.token_ids["b"]}, errors=errors))
    assert {output.request_id: output.finish_reason for output in outputs} == {"a": "error", "b": None}
    rest = [output.token_ids[0] for output in finish(scheduler, worker)["b"]]
    assert [*good.token_ids["b"], *rest] == oracle(sharing)[0]


def steps_of(scheduler: Scheduler, worker: FakeWorker, seconds: float) -> list[list[str]]:
    """Who computes in each step, until nothing is left; a step with more than two tokens takes `seconds`, others 1."""
    steps = []
    while (plan := scheduler.schedule()) is not None:
        steps += [[seq.request_id for seq in plan.scheduled]] if plan.scheduled else []
        is_long = sum(seq.num_tokens for seq in plan.scheduled) > 2
        scheduler.update(plan, worker.execute(plan), seconds if is_long else 1.0)
    assert not scheduler.has_work
    return steps


def test_a_prompt_of_many_steps_leaves_most_of_the_time_to_running_answers() -> None:
    scheduler, worker = make(max_num_batched_tokens=4, num_blocks=64)
    scheduler.add(request("short", [2, 3], max_tokens=40))
    scheduler.update(plan := plan_of(scheduler), worker.execute(plan))
    scheduler.add(request("long", [2 + index % 9 for index in range(30)], max_tokens=1))
    steps = steps_of(scheduler, worker, seconds=4.0)
    turns = [index for index, step in enumerate(steps) if "long" in step]
    assert all("short" in step for step in steps[:39])
    assert turns[:4] == [0, 1, 2, 3]  # its free steps, and the one after them
    assert [later - earlier for earlier, later in pairwise(turns[3:7])] == [11, 11, 11]


def test_a_prompt_of_many_steps_does_not_wait_for_nobody() -> None:
    scheduler, worker = make(max_num_batched_tokens=4, num_blocks=64)
    scheduler.add(request("long", [2 + index % 9 for index in range(30)], max_tokens=1))
    assert len(steps_of(scheduler, worker, seconds=4.0)) == 8


def test_prompts_of_many_steps_fill_one_anothers_rest() -> None:
    scheduler, worker = make(max_num_batched_tokens=4, num_blocks=64)
    scheduler.add(request("short", [2, 3], max_tokens=50))
    scheduler.update(plan := plan_of(scheduler), worker.execute(plan))
    for name in "abcd":
        scheduler.add(request(name, [2 + index % 9 for index in range(30)], max_tokens=1))
    steps = steps_of(scheduler, worker, seconds=4.0)
    is_filled = [len(step) > 1 for step in steps]
    assert sum(is_filled) > 20 and all(is_filled[: sum(is_filled)])  # one after the other, without a gap
