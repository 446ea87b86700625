"""A decoder process: `python -m trifocal.media.decode.process MEMORY_BYTES`, started by `decoder_pool`.

The bytes of strangers meet codecs written in C here and nowhere else. The process bounds its own memory and computing
time, so that a codec that runs wild dies of it, and it ends when its parent does. It reads jobs on standard input and
answers on standard output (`decoder_messages`); it opens no files and no connections.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from typing import BinaryIO

import numpy as np

from trifocal.errors import RequestError
from trifocal.malloc import few_heaps, give_back, no_large_leftovers
from trifocal.media.decode import messages
from trifocal.media.decode.image import as_array, load_image, open_image, refusal, scaled

CPU_PER_SECOND = 4  # computing time allowed for each second of a job's: decoders have so many threads
_MAX_JOBS = 1000
_NICENESS = 10  # answers that are being written come first where the processors are short
_MAX_IDLE_BYTES = 128 << 20  # a process that still holds so much memory of its own after a job is replaced
_UNKNOWN_START_BYTES = 1 << 30


def serve(jobs: BinaryIO, answers: BinaryIO) -> None:
    """Do jobs until their pipe is closed or the process is worn out."""
    _send(answers, messages.Ready())
    for count in range(1, _MAX_JOBS + 1):
        head = jobs.read(messages.LENGTH_BYTES)
        if not head:
            return
        job = messages.unpack_job(jobs.read(int.from_bytes(head, "little")))
        _start_clock(job.file.timeout_s)
        message = _do(job, jobs.read(job.file.num_bytes), answers)
        signal.alarm(0)
        give_back()
        is_spent = count == _MAX_JOBS or _own_bytes() > _MAX_IDLE_BYTES
        _send(answers, messages.Done(is_spent) if message is None else messages.Refused(message, is_spent))
        if is_spent:
            return


def _do(job: messages.Job, data: bytes, answers: BinaryIO) -> str | None:
    """Answer one job; the reason if its file cannot be used."""
    try:
        for answer in answer_job(job, data):
            if isinstance(answer, np.ndarray):
                _send(answers, messages.Frame(*answer.shape[:2]))
                answers.write(answer.data)
            else:
                _send(answers, answer)
    except RequestError as error:
        return error.message
    except MemoryError:
        return f"{job.file.where}: decoding it needs more memory than --decode-memory-gib allows"
    except BrokenPipeError:
        raise
    except Exception as error:  # decoders of broken files fail in every way there is
        return f"{job.file.where}: the file is broken or cut off: {error}"
    return None


def answer_job(job: messages.Job, data: bytes) -> Iterator[messages.ImageHeader | messages.VideoHeader | np.ndarray]:
    """The header of a file or its pixels, RGB uint8 [height, width, 3] each. Raises `RequestError` and anything."""
    if isinstance(job, messages.OpenImage):
        opened = open_image(data, job.file.where, job.file.max_pixels)
        yield messages.ImageHeader(opened.height, opened.width)
    elif isinstance(job, messages.LoadImage):
        yield _pixels(job, data)
    elif isinstance(job, messages.OpenVideo):
        yield _video_header(job, data)
    else:
        yield from _frames(job, data)


def _pixels(job: messages.LoadImage, data: bytes) -> np.ndarray:
    opened = open_image(data, job.file.where, job.file.max_pixels)

    def target(_: int, height: int, width: int) -> tuple[int, int]:
        if (height, width) == (opened.height, opened.width):
            return job.size
        if (width, height) == (opened.height, opened.width):
            return job.turned_size
        raise refusal("", "its size is not what its header says")

    return np.ascontiguousarray(load_image(opened, target).pixels)


def _video_header(job: messages.OpenVideo, data: bytes) -> messages.VideoHeader:
    from trifocal.media.decode.animation import Animation, is_animation
    from trifocal.media.decode.video_file import VideoFile

    if is_animation(data):
        moving = Animation(data, job.file.where, job.file.max_pixels)
        return messages.VideoHeader(moving.num_frames, moving.fps, moving.height, moving.width, b"")
    file = VideoFile(data, job.file.where, job.file.max_pixels)
    return messages.VideoHeader(file.num_frames, file.fps, file.height, file.width, file.index)


def _frames(job: messages.LoadVideo, data: bytes) -> Iterator[np.ndarray]:
    from trifocal.media.decode.animation import Animation
    from trifocal.media.decode.video_file import VideoFile

    clip: Animation | VideoFile
    if job.index:
        clip = VideoFile(data, job.file.where, job.file.max_pixels, job.index)
    else:
        clip = Animation(data, job.file.where, job.file.max_pixels)
    for picture in clip.pictures(np.array(job.indices, np.int64)):
        yield np.ascontiguousarray(as_array(scaled(picture, len(job.indices), lambda *_: job.size)))


# ---------------------------------------------------------------------------------------------- the process


def _send(answers: BinaryIO, message: messages.Answer) -> None:
    answers.write(messages.pack(message))
    answers.flush()


def _limit(memory_bytes: int) -> None:
    """Bound what this process may take, on top of what it has now; no dumps, no writing to files."""
    _lower(resource.RLIMIT_AS, _address_space() + memory_bytes)
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_FSIZE, 0)


def _lower(limit: int, value: int) -> None:
    _, hard = resource.getrlimit(limit)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    with suppress(OSError, ValueError):  # a system that does not know this limit: the others still hold
        resource.setrlimit(limit, (value, value))


def _start_clock(timeout_s: float) -> None:
    """From now on the job may take so long; the kernel ends the process then, whatever holds the interpreter."""
    signal.alarm(int(timeout_s) + 2)  # the parent's clock comes first, if there still is a parent
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    limit = int(time.process_time() + timeout_s * CPU_PER_SECOND) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _address_space() -> int:
    return _statm(0) or _UNKNOWN_START_BYTES


def _own_bytes() -> int:
    """Resident, and no file's."""
    return _statm(1) - _statm(2)


def _statm(column: int) -> int:
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[column]) * resource.getpagesize()
    except OSError:  # not Linux
        return 0


def _end_with_parent() -> None:
    """Watch for the far end of standard input being closed, which a dead parent's is: end then, in mid-job, too."""
    poll = select.poll()
    poll.register(sys.stdin.fileno(), 0)  # only hang-ups are reported

    def watch() -> None:
        poll.poll()
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """Run the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides what it means
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints must not look like an answer
    _end_with_parent()
    os.nice(_NICENESS)
    few_heaps()
    no_large_leftovers()
    _limit(int(sys.argv[1]))
    serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
