"""The step note survives its writer."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from trifocal.engine.channel import Channel
from trifocal.engine.process import EngineProcess
from trifocal.engine.step_note import StepNote
from trifocal.types import ScheduledSeq, StepPlan


@pytest.fixture(params=["nameless memory", "temporary file"])
def note(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[StepNote]:
    if request.param == "temporary file":
        monkeypatch.delattr(os, "memfd_create")
    note = StepNote.create()
    yield note
    note.close()


def test_the_last_one_written_counts(note: StepNote) -> None:
    assert note.read() == frozenset()
    for ids in (["a", "b/1~0", "é" * 300], [], ["c"]):
        note.write(ids)
        assert note.read() == frozenset(ids)


def test_a_process_that_kills_itself_has_left_it(note: StepNote) -> None:
    code = (
        "import os, signal, sys\n"
        "from trifocal.engine.step_note import StepNote\n"
        "StepNote(int(sys.argv[1])).write(['a', 'b'])\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(note.fileno)], pass_fds=[note.fileno], check=False)
    assert note.read() == {"a", "b"}


def test_a_torn_one_is_none(note: StepNote) -> None:
    note.write(["a", "b"])
    os.pwrite(note.fileno, b"x", 9)
    assert note.read() is None
    os.ftruncate(note.fileno, 9)
    assert note.read() is None


def test_all_steps_that_are_begun_and_not_finished_are_in_it(note: StepNote) -> None:
    """Stages of a pipeline work on different steps, and any of these may be what kills a worker."""
    channel = Channel(socket.socket().detach())
    process = EngineProcess(channel, note)
    step = [ScheduledSeq(name, 0, 1, [], num_sampled_rows=1) for name in "abc"]
    process._begin_step([StepPlan(1, step[:2]), StepPlan(2, step[1:])])
    assert note.read() == {"a", "b", "c"}
    process._begin_step([StepPlan(2, step[1:])])
    assert note.read() == {"b", "c"}
    channel.close()
