"""What a helper process does about itself: the limits that the kernel keeps for it, its end, its messages.

A helper is a program of this package that `HelperPool` starts. It reads jobs on standard input and answers on standard
output. A message is its length, four bytes, and its bytes; bytes without a length may follow where both sides know how
many. The helper says an empty message when it has started. No import of torch or numpy here: it starts in milliseconds.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import sys
import threading
import time
from contextlib import suppress
from typing import BinaryIO

LENGTH_BYTES = 4
_GRACE_S = 2  # the pool's clock comes first, if there still is a pool
_UNKNOWN_START_BYTES = 1 << 30


def begin(memory_bytes: int, *, niceness: int = 0) -> tuple[BinaryIO, BinaryIO]:
    """Bound this process and say that it is ready; returns the ends for jobs and for answers.

    It may take `memory_bytes` on top of what it has now, dump nothing and write to no file. It ends when its parent
    does, and a ^C in the terminal, which reaches every process, is for the parent to judge.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGPROF, signal.SIGALRM, signal.SIGXCPU):
        signal.signal(number, signal.SIG_DFL)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints must not look like an answer
    _end_with_parent()
    os.nice(niceness)
    _lower(resource.RLIMIT_AS, (_statm(0) or _UNKNOWN_START_BYTES) + memory_bytes)
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_FSIZE, 0)
    write_message(answers, b"")
    return sys.stdin.buffer, answers


def read_message(jobs: BinaryIO) -> bytes | None:
    """The next message, None where the input has ended."""
    head = jobs.read(LENGTH_BYTES)
    return jobs.read(int.from_bytes(head, "little")) if head else None


def write_message(answers: BinaryIO, data: bytes) -> None:
    """Send one message."""
    answers.write(packed(data))
    answers.flush()


def packed(data: bytes) -> bytes:
    """A message as it goes through a pipe."""
    return len(data).to_bytes(LENGTH_BYTES, "little") + data


def limit_seconds(wall: float, cpu: float) -> None:
    """From now on the process may run and compute so long; then the kernel ends it, whatever holds the interpreter.

    The exact limit on computing is a timer whose signal is SIGPROF. SIGXCPU stands behind it, in whole seconds, as code
    in the process could stop a timer.
    """
    signal.setitimer(signal.ITIMER_REAL, wall + _GRACE_S)
    signal.setitimer(signal.ITIMER_PROF, cpu)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    most = int(time.process_time() + cpu) + 2
    resource.setrlimit(resource.RLIMIT_CPU, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def end_of_job() -> None:
    """Stop the clocks of `limit_seconds`."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.setitimer(signal.ITIMER_PROF, 0)


def own_bytes() -> int:
    """Resident memory that is no file's; 0 where the system does not tell."""
    return _statm(1) - _statm(2)


def _statm(column: int) -> int:
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[column]) * resource.getpagesize()
    except OSError:  # not Linux
        return 0


def _lower(limit: int, value: int) -> None:
    _, hard = resource.getrlimit(limit)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    with suppress(OSError, ValueError):  # a system that does not know this limit: the others still hold
        resource.setrlimit(limit, (value, value))


def _end_with_parent() -> None:
    """Watch for the far end of standard input being closed, which a dead parent's is: end then, in mid-job, too."""
    poll = select.poll()
    poll.register(sys.stdin.fileno(), 0)  # only hang-ups are reported

    def watch() -> None:
        poll.poll()
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
