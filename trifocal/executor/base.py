"""Executors: how plans reach the workers. `Executor` is the contract, `EXECUTORS` names the implementations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from trifocal.config.engine import EngineConfig
from trifocal.registry import Registry
from trifocal.types import Capacity, MediaItem, StepPlan, StepResult

OnStep = Callable[[Sequence[StepPlan]], None]


def nothing(plans: Sequence[StepPlan]) -> None:
    """An `on_step` that does nothing."""


class Executor(ABC):
    """Runs steps strictly in the order in which they were submitted; once a step has raised, no later one is begun.

    `on_step` is called when a step's turn has come, before anything of it is computed, in any thread; if it raises, so
    does the step. It gets all plans that were begun and are not finished, in order, the new one last: several where
    stages of a pipeline work on different steps, and any of them may be what kills a worker then.
    """

    max_steps_in_flight: int = 2  # submitted and not finished: one runs, and one waits so that no worker does

    def __init__(self, config: EngineConfig, on_step: OnStep = nothing) -> None:
        self.config = config
        self.on_step = on_step

    @abstractmethod
    def start(self) -> Capacity:
        """Load weights, measure memory, allocate the KV cache; what all workers have room for. Raises `ConfigError`."""

    @abstractmethod
    def hold(self, item: MediaItem) -> MediaItem:
        """The item with pixels that every worker will find in it, or under it, until it is dropped.

        Called for each item of a request before the first plan with it. Raises `RequestError` if the pixels are gone.
        """

    @property
    @abstractmethod
    def num_mapped_media(self) -> int:
        """How many items' pixels this process has mapped for its workers."""

    @abstractmethod
    def submit(self, plan: StepPlan) -> Future[StepResult]:
        """Queue a step behind the ones submitted before; the caller may plan on meanwhile."""

    @abstractmethod
    def reset(self) -> None:
        """After a step has raised: forget every sequence and all embeddings, and run what is submitted from now on."""

    @abstractmethod
    def shutdown(self) -> None:
        """Give the devices back. Safe to call twice."""


def least(capacities: Sequence[Capacity]) -> Capacity:
    """What all ranks have room for. A block or an embedding that one of them lacks is of no use to the others."""
    return Capacity(
        num_blocks=min(each.num_blocks for each in capacities),
        max_model_len=min(each.max_model_len for each in capacities),
        bytes_per_embed=max(each.bytes_per_embed for each in capacities),
    )


EXECUTORS: Registry[type[Executor]] = Registry("executor", {"uni": "trifocal.executor.local:LocalExecutor"})
