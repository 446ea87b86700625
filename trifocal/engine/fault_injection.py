"""A test aid: faults on demand, to see that the server survives them. Refused unless explicitly allowed.

`TRIFOCAL_FAULT_INJECT=KIND:TEXT[@POSITION]` makes every step on a request whose id contains TEXT, from the step that
computes POSITION on (counted from the start of its prompt; default 0), do KIND: `exit` ends the process, `segv` is
a segmentation fault, `raise` an exception in the step, `hang` a step that never ends.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

from trifocal.config.supervision import SupervisionConfig
from trifocal.errors import ConfigError
from trifocal.types import ScheduledSeq, StepPlan


def _exit() -> None:
    os._exit(3)


def _segv() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def _raise() -> None:
    raise RuntimeError("injected fault")


def _hang() -> None:
    while True:
        time.sleep(3600)


_FAULTS: dict[str, Callable[[], None]] = {"exit": _exit, "segv": _segv, "raise": _raise, "hang": _hang}


def injected_fault(config: SupervisionConfig) -> Callable[[StepPlan], None] | None:
    """What is to be called with every plan before it runs, None without an injected fault. Raises `ConfigError`."""
    text = config.fault
    if text is None:
        return None
    if not config.allows_faults:
        raise ConfigError(
            "TRIFOCAL_FAULT_INJECT crashes the engine on purpose: unset it, or say that this is a test with "
            "TRIFOCAL_ALLOW_FAULT_INJECTION=1"
        )
    kind, _, rest = text.partition(":")
    part, _, position = rest.partition("@")
    if kind not in _FAULTS or not part or not (position or "0").isdigit():
        raise ConfigError(f"TRIFOCAL_FAULT_INJECT={text!r}: expected KIND:TEXT[@POSITION], KIND {', '.join(_FAULTS)}")

    def is_hit(seq: ScheduledSeq) -> bool:
        return part in seq.request_id and seq.start + seq.num_tokens > int(position or 0)

    def inject(plan: StepPlan) -> None:
        if any(map(is_hit, plan.scheduled)):
            _FAULTS[kind]()

    return inject
