"""How the server watches over engine processes; all of it is the environment's."""

from __future__ import annotations

from dataclasses import dataclass

from trifocal.config import envs
from trifocal.config.arguments import from_env


@dataclass(frozen=True, kw_only=True)
class SupervisionConfig:
    """Seconds and counts: see the variables' meanings. `fault` is a fault to inject (`engine.fault_injection`)."""

    max_restarts: int = from_env(envs.ENGINE_MAX_RESTARTS)
    restart_backoff_s: float = from_env(envs.ENGINE_RESTART_BACKOFF_S)
    ready_timeout_s: float = from_env(envs.ENGINE_READY_TIMEOUT_S)
    iteration_timeout_s: float = from_env(envs.ENGINE_ITERATION_TIMEOUT_S)
    fault: str | None = from_env(envs.FAULT_INJECT)
    allows_faults: bool = from_env(envs.ALLOW_FAULT_INJECTION)
