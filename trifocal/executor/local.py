"""One worker in this process, on a thread of its own: the engine plans the next step while this one runs."""

from __future__ import annotations

from concurrent.futures import Future

from trifocal.config.engine import EngineConfig
from trifocal.executor.base import Executor, OnStep, least, nothing
from trifocal.threads import Threads
from trifocal.types import Capacity, MediaItem, StepPlan, StepResult
from trifocal.worker.context import WorkerContext
from trifocal.worker.pixels import LocalPixels
from trifocal.worker.worker import Worker


class LocalExecutor(Executor):
    """Everything that touches torch runs on one thread: its intra-op thread pool and inference mode belong to it."""

    def __init__(self, config: EngineConfig, on_step: OnStep = nothing) -> None:
        super().__init__(config, on_step)
        self._thread = Threads(1, "trifocal-worker")
        self._pixels = LocalPixels()
        self._worker: Worker | None = None
        self._has_failed = False

    def start(self) -> Capacity:
        return self._thread.submit(self._start).result()

    def _start(self) -> Capacity:
        self._worker = Worker(self.config, WorkerContext.alone(self.config.parallel, self._pixels))
        return least([self._worker.capacity])

    def hold(self, item: MediaItem) -> MediaItem:
        """See `Executor.hold`: the worker shares this process's memory."""
        return self._pixels.hold(item)

    @property
    def num_mapped_media(self) -> int:
        return self._pixels.num_mapped

    def submit(self, plan: StepPlan) -> Future[StepResult]:
        return self._thread.submit(self._execute, plan)

    def _execute(self, plan: StepPlan) -> StepResult:
        assert self._worker is not None, "start() first"
        if self._has_failed:
            raise RuntimeError("an earlier step failed")
        try:
            self.on_step([plan])
            return self._worker.execute(plan)
        except BaseException:
            self._has_failed = True
            raise

    def reset(self) -> None:
        self._thread.submit(self._reset).result()

    def _reset(self) -> None:
        assert self._worker is not None, "start() first"
        self._worker.reset()
        self._has_failed = False

    def shutdown(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._worker = None
