"""The engine core: requests in, token outputs out, one step at a time."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from dataclasses import replace
from time import monotonic

from trifocal.config.arguments import part
from trifocal.config.engine import EngineConfig
from trifocal.engine.block_manager import BlockManager
from trifocal.engine.encoder_cache import EncoderCache
from trifocal.engine.limits import Limits
from trifocal.engine.scheduler import Scheduler
from trifocal.executor.base import EXECUTORS, OnStep, nothing
from trifocal.types import EngineStats, Request, StepPlan, StepResult, TokenOutput


class Engine:
    """Scheduler and executor together, in the caller's process. Not thread-safe: one thread calls it.

    `on_step` is called before each step is computed (see `Executor`).
    """

    def __init__(self, config: EngineConfig, on_step: OnStep = nothing) -> None:
        self.config = config
        self.executor = EXECUTORS.get(config.parallel.distributed_executor_backend)(config, on_step)
        capacity = self.executor.start()
        text = config.model.spec.text
        self.limits = part(
            Limits,
            config.scheduling,
            max_model_len=capacity.max_model_len,
            num_blocks=capacity.num_blocks,
            block_size=config.cache.block_size,
            bytes_per_embed=capacity.bytes_per_embed,
            encoder_cache_bytes=config.cache.encoder_cache_bytes,
            vocab_size=text.vocab_size,
            short_context=text.rope.short_context,
        )
        self.scheduler = self._new_scheduler()
        self._steps: deque[tuple[StepPlan, Future[StepResult]]] = deque()  # submitted, the oldest first
        self._step_began = 0.0  # the oldest one, by the clock

    def _new_scheduler(self) -> Scheduler:
        limits = self.limits
        blocks = BlockManager(limits.num_blocks, limits.block_size, enable_prefix_caching=limits.enable_prefix_caching)
        return Scheduler(limits, blocks, EncoderCache(limits.encoder_cache_bytes))

    def add(self, request: Request) -> None:
        """Queue a request. Raises `RequestError` if it can never run, or its pixels are gone."""
        media = tuple(self.executor.hold(item) for item in request.prompt.media)
        self.scheduler.add(replace(request, prompt=replace(request.prompt, media=media)) if media else request)

    def abort(self, request_id: str) -> None:
        """Forget a request; its blocks are free at once."""
        self.scheduler.abort(request_id)

    @property
    def has_work(self) -> bool:
        """Whether a call to `step` would do anything."""
        return self.scheduler.has_work or bool(self._steps)

    def step(self) -> list[TokenOutput]:
        """Plan a step and submit it; once no more fit in, return what the oldest produced, waiting for it."""
        plan = self.scheduler.schedule()
        if plan is not None:
            if not self._steps:
                self._step_began = monotonic()
            self._steps.append((plan, self.executor.submit(plan)))
        has_room = plan is not None and len(self._steps) < self.executor.max_steps_in_flight
        if has_room or not self._steps:
            return []
        oldest, future = self._steps.popleft()
        result = future.result()
        began, self._step_began = self._step_began, monotonic()
        return self.scheduler.update(oldest, result, self._step_began - began)

    def restart(self) -> None:
        """After `step` has raised: forget every request and all that is cached; counters begin anew, weights stay."""
        self._steps.clear()
        self.executor.reset()
        self.scheduler = self._new_scheduler()

    def stats(self) -> EngineStats:
        return replace(self.scheduler.stats(), mapped_media=self.executor.num_mapped_media)

    def shutdown(self) -> None:
        self.executor.shutdown()
