"""The step note survives its writer."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from trifocal.engine.step_note import StepNote


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
