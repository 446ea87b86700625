"""Random requests on random small pools: every plan makes sense, and every answer is what the request gets alone."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

import pytest

from tests.engine.fake_worker import (
    PLACEHOLDER,
    VOCAB,
    FakeWorker,
    make_limits,
    media_item,
    oracle,
    prompt_logprobs,
)
from trifocal.engine.block_manager import BlockManager
from trifocal.engine.encoder_cache import EncoderCache
from trifocal.engine.limits import Limits
from trifocal.engine.scheduler import Scheduler
from trifocal.errors import RequestError
from trifocal.sampling_params import SamplingParams
from trifocal.types import Prompt, Request, StepPlan, StepResult, TokenLogprobs, TokenOutput

_MAX_MODEL_LEN = 56
_SHAPES: list[tuple[bool, ...] | int] = [3, 7, (True, True, False, True, False), (False, True, True, True, True), 12]
_HASHES = [bytes([index]) * 16 for index in range(len(_SHAPES))]
_PIECES = [[2, 3, 4, 5, 6, 7], [2, 3, 4, 8], [9, 10], [2]]


@dataclass
class Life:
    """What is known of one request."""

    request: Request
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None

    def has_outgrown(self, num_tokens: int | None) -> bool:
        """Whether it got a token for which more than `num_tokens` were computed, and began with less."""
        begun = len(self.request.prompt.token_ids)
        return num_tokens is not None and begun <= num_tokens < begun + len(self.token_ids) - 1


class Run:
    """One engine life, stepped as `Engine.step` does: the next plan is made before the last result is in."""

    def __init__(self, seed: int, *, can_fail: bool = False) -> None:
        self.random = random.Random(seed)
        self.limits = self._limits()
        self.can_abort = self.random.random() < 0.5
        self.is_pipelined = self.random.random() < 0.8
        failing = self.random.sample(_HASHES, 2) if can_fail else []
        self.worker = FakeWorker(self.limits, failing, ["r3", "r7"] if can_fail else [], seed)
        self.can_die = not can_fail and self.random.random() < 0.3
        self.is_caching = self.random.random() < 0.8
        self.scheduler = self._new_scheduler()
        self.num_deaths = 0
        self.lives: list[Life] = []
        self.alive: dict[str, Life] = {}
        self.in_flight: tuple[StepPlan, StepResult] | None = None

    def _new_scheduler(self) -> Scheduler:
        limits = self.limits
        blocks = BlockManager(limits.num_blocks, limits.block_size, enable_prefix_caching=self.is_caching)
        return Scheduler(limits, blocks, EncoderCache(limits.encoder_cache_bytes))

    def _limits(self) -> Limits:
        block_size = self.random.choice([1, 2, 4, 8])
        is_chunked = self.random.random() < 0.8
        return make_limits(
            max_model_len=_MAX_MODEL_LEN,
            block_size=block_size,
            num_blocks=_MAX_MODEL_LEN // block_size + self.random.choice([0, 0, 1, 5, 20]),
            max_num_seqs=self.random.choice([1, 2, 4, 16]),
            max_num_batched_tokens=self.random.choice([1, 4, 16, 64]) if is_chunked else 64,
            encoder_cache_bytes=self.random.choice([24, 26, 32, 60, 200]),
            enable_chunked_prefill=is_chunked,
            short_context=self.random.choice([None, None, 4, 9, 16, 24]),
            max_drafts=self.random.choice([0, 0, 1, 2, 5]),
        )

    def live(self, num_requests: int) -> None:
        """Add requests at random moments and step until all have ended."""
        for _ in range(4000):
            while num_requests and self.random.random() < 0.5:
                num_requests -= 1
                self._add(f"r{num_requests}")
            if self.can_abort and self.alive and self.random.random() < 0.1:
                self._abort(self.random.choice(list(self.alive)))
            if self.can_die and self.random.random() < 0.03:
                self._die()
            if not num_requests and not self.scheduler.has_work and self.in_flight is None:
                break
            self._step()
        else:
            raise AssertionError("it never ends")

    def _add(self, request_id: str) -> None:
        request = self._request(request_id)
        try:
            self.scheduler.add(request)
        except RequestError:
            return
        self.alive[request_id] = Life(request)
        self.lives.append(self.alive[request_id])

    def _request(self, request_id: str) -> Request:
        token_ids: list[int] = []
        media = []
        for _ in range(self.random.randint(1, 5)):
            if self.random.random() < 0.5:
                token_ids += self.random.choice(_PIECES)
            else:
                which = self.random.randrange(len(_SHAPES))
                media.append(media_item(_HASHES[which], len(token_ids), _SHAPES[which]))
                token_ids += [PLACEHOLDER] * media[-1].span.length
        token_ids = token_ids or [2]
        stop_ids = frozenset(self.random.sample(range(VOCAB), self.random.choice([0, 3, 10])))
        asked = self.random.choice([None, None, None, 0])
        max_tokens = self.random.choice([0, 1, 5, 20]) if asked == 0 else self.random.randint(1, 20)
        min_tokens = self.random.choice([0, 0, max_tokens // 2])
        params = SamplingParams(max_tokens=max_tokens, min_tokens=min_tokens, prompt_logprobs=asked)
        prompt = Prompt(token_ids, tuple(media), cache_salt=self.random.choice([None, None, "a", "b"]))
        return Request(request_id, prompt, params, stop_ids, prompt_logprobs=asked)

    def _abort(self, request_id: str) -> None:
        self.scheduler.abort(request_id)
        self.alive.pop(request_id).finish_reason = "abort"
        if self.random.random() < 0.5:
            self._add(request_id)  # a client that tries again under its old id

    def _die(self) -> None:
        """A new engine goes on behind the tokens of the dead one; its last step is lost."""
        old, self.in_flight = self.worker, None
        self.scheduler, self.worker = self._new_scheduler(), FakeWorker(self.limits, seed=self.random.randrange(1000))
        self.worker.num_drafts, self.worker.num_kept = old.num_drafts, old.num_kept
        self.num_deaths += 1
        for life in self.alive.values():
            self.scheduler.add(replace(life.request, output_token_ids=tuple(life.token_ids)))

    def _step(self) -> None:
        plan = self.scheduler.schedule()
        result = None if plan is None else self.worker.execute(plan)
        started = None if plan is None or result is None else (plan, result)
        if started is None and self.in_flight is None:
            assert not self.scheduler.has_work, "work, and nothing to do"
        if self.is_pipelined:
            started, self.in_flight = self.in_flight, started
        if started is not None:
            for output in self.scheduler.update(*started):
                self._take(output)

    def _take(self, output: TokenOutput) -> None:
        life = self.alive[output.request_id]
        if output.prompt_logprobs is not None:
            assert life.prompt_logprobs is None and not life.token_ids, "sent once, with the first tokens"
            life.prompt_logprobs = output.prompt_logprobs
        life.token_ids += output.token_ids
        life.finish_reason = output.finish_reason
        if output.finish_reason is not None:
            del self.alive[output.request_id]

    def check_end(self) -> None:
        """Everything was given back and everybody got the right answer."""
        stats = self.scheduler.stats()
        assert (stats.num_running, stats.num_waiting, stats.kv_blocks_used, stats.encoder_bytes_pinned) == (0, 0, 0, 0)
        assert (stats.worker_sequences, stats.worker_embeds) == (0, stats.encoder_items), "workers were not told"
        assert stats.num_media_encoded == self.worker.num_encoded
        for life in self.lives:
            limits = self.limits
            token_ids, reason = oracle(life.request, context_len=limits.context_len, short_context=limits.short_context)
            if life.finish_reason == "error":
                is_unlucky = life.request.request_id in self.worker.unlucky
                assert is_unlucky or self.worker.failed_hashes & _hashes(life.request), "failed by others' fault"
            elif life.finish_reason != "abort":
                assert (life.token_ids, life.finish_reason) == (token_ids, reason)
                is_asked = life.request.prompt_logprobs is not None
                assert life.prompt_logprobs == (prompt_logprobs(life.request) if is_asked else None)
            assert life.token_ids == token_ids[: len(life.token_ids)]


def _hashes(request: Request) -> set[bytes]:
    return {item.content_hash for item in request.prompt.media}


@pytest.mark.parametrize("seeds", [range(100), pytest.param(range(100, 300), marks=pytest.mark.slow)])
def test_answers_do_not_depend_on_company(seeds: range) -> None:
    totals = dict.fromkeys(("num_preemptions", "prefix_hits", "encoder_hits", "num_media_encoded"), 0)
    reasons, num_outgrown, num_drafts, num_kept, num_deaths = set(), 0, 0, 0, 0
    for seed in seeds:
        run = Run(seed)
        run.live(num_requests=14)
        run.check_end()
        reasons |= {life.finish_reason for life in run.lives}
        num_drafts += run.worker.num_drafts
        num_kept += run.worker.num_kept
        num_deaths += run.num_deaths
        num_outgrown += sum(life.has_outgrown(run.limits.short_context) for life in run.lives)
        for name in totals:
            totals[name] += getattr(run.scheduler.stats(), name)
    assert reasons == {"stop", "length", "abort"}
    totals |= {"outgrown": num_outgrown, "kept drafts": num_kept, "lost drafts": num_drafts - num_kept}
    assert num_deaths > len(seeds) / 10
    assert min(totals.values()) > len(seeds), f"this was too easy: {totals}"


@pytest.mark.parametrize("seeds", [range(1000, 1070), pytest.param(range(1070, 1200), marks=pytest.mark.slow)])
def test_a_failing_picture_fails_only_those_who_show_it(seeds: range) -> None:
    num_failed = 0
    for seed in seeds:
        run = Run(seed, can_fail=True)
        run.live(num_requests=14)
        run.check_end()
        num_failed += sum(life.finish_reason == "error" for life in run.lives)
    assert num_failed > len(seeds) / 2
