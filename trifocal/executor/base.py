"""Executors: how plans reach the workers. `Executor` is the contract, `EXECUTORS` names the implementations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future

from trifocal.config.engine import EngineConfig
from trifocal.registry import Registry
from trifocal.types import Capacity, StepPlan, StepResult


class Executor(ABC):
    """Runs steps strictly in the order in which they were submitted; once a step has raised, no later one is begun.

    `on_step` is called with each plan when its turn has come, before anything of it is computed, in any thread; if it
    raises, so does the step.
    """

    def __init__(self, config: EngineConfig, on_step: Callable[[StepPlan], None] = lambda plan: None) -> None:
        self.config = config
        self.on_step = on_step

    @abstractmethod
    def start(self) -> Capacity:
        """Load weights, measure memory, allocate the KV cache. Raises `ConfigError`."""

    @abstractmethod
    def submit(self, plan: StepPlan) -> Future[StepResult]:
        """Queue a step behind the ones submitted before; the caller may plan on meanwhile."""

    @abstractmethod
    def reset(self) -> None:
        """After a step has raised: forget every sequence and all embeddings, and run what is submitted from now on."""

    @abstractmethod
    def shutdown(self) -> None:
        """Give the devices back. Safe to call twice."""


EXECUTORS: Registry[type[Executor]] = Registry("executor", {"uni": "trifocal.executor.local:LocalExecutor"})
