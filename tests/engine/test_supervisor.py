"""The supervisor's bounds: how often it starts an engine again, how long it waits before, when it gives up."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import pytest

from trifocal.config.engine import EngineConfig
from trifocal.config.supervision import SupervisionConfig
from trifocal.engine import child, messages, supervisor
from trifocal.engine.child import Death, EngineChild, VanishedError
from trifocal.engine.supervisor import State, Supervisor
from trifocal.errors import ConfigError, EngineDeadError
from trifocal.types import EngineStats, TokenOutput

TOKEN = messages.Outputs([TokenOutput("a", [1])], EngineStats())
READY = cast(Any, object())


class FakeChild:
    """An engine whose life is the next of `lives`: an exception instead of becoming ready, or what it says in vain."""

    lives: deque[Exception | list[messages.FromEngine]]
    pid = 1

    @classmethod
    async def spawn(cls, bounds: SupervisionConfig) -> FakeChild:
        return cls()

    async def ready(self, config: EngineConfig) -> messages.Ready:
        if isinstance(life := self.lives[0], Exception):
            self.lives.popleft()
            raise life
        return cast(messages.Ready, READY)

    async def run(self, on_message: Callable[[messages.FromEngine], None], is_busy: Callable[[], bool]) -> Death:
        life = self.lives.popleft()
        assert isinstance(life, list)
        for message in life:
            on_message(message)
        return Death("it died", None)

    async def stop(self, *, is_polite: bool) -> None:
        pass


class Watcher:
    """Who is told: counts, and hears of the end."""

    def __init__(self, *, is_idle: bool = False) -> None:
        self.is_idle, self.lost, self.num_started = is_idle, asyncio.Event(), 0

    def is_busy(self) -> bool:
        return not self.is_idle

    def receive(self, message: messages.FromEngine) -> None: ...

    def engine_died(self, death: Death) -> None: ...

    def engine_started(self) -> None:
        self.num_started += 1

    def engine_lost(self, reason: str) -> None:
        self.reason = reason
        self.lost.set()


@pytest.fixture
def lives(monkeypatch: pytest.MonkeyPatch) -> deque[Any]:
    monkeypatch.setattr(supervisor, "EngineChild", FakeChild)
    monkeypatch.setenv("TRIFOCAL_ENGINE_MAX_RESTARTS", "2")
    monkeypatch.setenv("TRIFOCAL_ENGINE_RESTART_BACKOFF_S", "0.001")
    FakeChild.lives = deque()
    return FakeChild.lives


async def watch(watcher: Watcher) -> Supervisor:
    """A supervisor whose first engine is ready, watched until it is lost."""
    made = Supervisor(SupervisionConfig())
    made._config = cast(Any, object())
    await made.spawn()
    await made._start_until_ready(retries=(VanishedError,))
    made.watch(watcher)
    async with asyncio.timeout(30):
        await watcher.lost.wait()
    assert made.state is State.LOST
    return made


async def test_it_gives_up_after_so_many_in_a_row(lives: deque[Any]) -> None:
    lives += [[], EngineDeadError("no start"), []]
    watcher = Watcher()
    assert (await watch(watcher)).num_restarts == 2
    assert "it died; 2 restarts brought no token (TRIFOCAL_ENGINE_MAX_RESTARTS)" in watcher.reason
    assert watcher.num_started == 1


async def test_a_token_makes_good_for_all_before(lives: deque[Any]) -> None:
    lives += [[], [], [TOKEN], [], []]
    assert (await watch(Watcher())).num_restarts == 4


async def test_an_idle_engine_that_lived_long_did_not_die_of_its_start(
    lives: deque[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    lives += [[], [], [], [], []]
    monkeypatch.setattr(supervisor, "_QUIET_S", -1.0)
    watching = asyncio.create_task(watch(Watcher(is_idle=True)))
    while lives:
        await asyncio.sleep(0.001)
        assert not watching.done() or not lives
    watching.cancel()


async def test_one_that_says_why_it_cannot_start_ends_it(lives: deque[Any]) -> None:
    lives += [[], ConfigError("the checkpoint is gone")]
    watcher = Watcher()
    await watch(watcher)
    assert watcher.reason == "the checkpoint is gone"


def test_pauses_grow_and_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIFOCAL_ENGINE_RESTART_BACKOFF_S", "2")
    made, pauses = Supervisor(SupervisionConfig()), []
    for made._num_failures in range(9):
        pauses.append(made._backoff_s())
    assert pauses == [0, 0, 2, 4, 8, 16, 30, 30, 30]


async def test_a_system_without_room_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """No memory or no process to be had at the moment is no reason to give up for good."""

    async def full(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", full)
    with pytest.raises(VanishedError, match="no engine process can be started: Cannot allocate memory"):
        await EngineChild.spawn(SupervisionConfig())


async def test_one_that_never_becomes_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIFOCAL_ENGINE_READY_TIMEOUT_S", "0.3")
    monkeypatch.setattr(child, "python_module", lambda *_: ["sleep", "600"])
    monkeypatch.setattr(messages, "encode", lambda _: b"")
    engine = await EngineChild.spawn(SupervisionConfig())
    with pytest.raises(VanishedError, match=r"not ready in 0\.3 s \(TRIFOCAL_ENGINE_READY_TIMEOUT_S\)"):
        await engine.ready(cast(Any, None))
    await engine.stop(is_polite=False)


@pytest.mark.parametrize(("before", "is_from_outside"), [("oom_kill 3", True), ("oom_kill 2", False)])
async def test_a_kill_for_want_of_memory_is_a_crash(
    monkeypatch: pytest.MonkeyPatch, before: str, is_from_outside: bool
) -> None:
    """Both are a SIGKILL; the kernel's count of the other kind tells them apart."""
    counts = iter([before, "oom_kill 3"])
    monkeypatch.setattr(child, "_num_oom_kills", lambda: next(counts))
    monkeypatch.setattr(child, "python_module", lambda *_: ["sh", "-c", "kill -9 $$"])
    engine = await EngineChild.spawn(SupervisionConfig())
    death = await engine.run(lambda _: None, lambda: True)
    assert (death.reason, death.is_from_outside) == ("the process was ended by SIGKILL", is_from_outside)
    await engine.stop(is_polite=False)
