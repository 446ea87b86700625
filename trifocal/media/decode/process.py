"""A decoder process: `python -m trifocal.media.decode.process MEMORY_BYTES`, started as a `DecoderHelper`.

The bytes of strangers meet codecs written in C here and nowhere else. The process bounds its own memory and computing
time (`helpers/process.py`), so that a codec that runs wild dies of it. It opens no files and no connections.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from trifocal.errors import RequestError
from trifocal.helpers.process import begin, end_of_job, limit_seconds, own_bytes, read_message, write_message
from trifocal.malloc import few_heaps, give_back, no_large_leftovers
from trifocal.media.decode import jobs
from trifocal.media.decode.image import OtherSizeError, as_array, load_image, open_image, refusal, scaled

CPU_PER_SECOND = 4  # computing time allowed for each second of a job's: decoders have so many threads
_MAX_JOBS = 1000
_NICENESS = 10  # answers that are being written come first where the processors are short
_MAX_IDLE_BYTES = 128 << 20  # a process that still holds so much memory of its own after a job is replaced


def serve(incoming: BinaryIO, answers: BinaryIO) -> None:
    """Do jobs until their pipe is closed or the process is worn out."""
    for count in range(1, _MAX_JOBS + 1):
        asked = read_message(incoming)
        if asked is None:
            return
        job = jobs.decode_job(asked)
        limit_seconds(job.file.timeout_s, job.file.timeout_s * CPU_PER_SECOND)
        message = _do(job, incoming.read(job.file.num_bytes), answers)
        end_of_job()
        give_back()
        is_spent = count == _MAX_JOBS or own_bytes() > _MAX_IDLE_BYTES
        _send(answers, jobs.Done(is_spent) if message is None else jobs.Refused(message, is_spent))
        if is_spent:
            return


def _do(job: jobs.Job, data: bytes, answers: BinaryIO) -> str | None:
    """Answer one job; the reason if its file cannot be used."""
    try:
        for answer in answer_job(job, data):
            if isinstance(answer, np.ndarray):
                _send(answers, jobs.Frame(*answer.shape[:2]))
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


def answer_job(job: jobs.Job, data: bytes) -> Iterator[jobs.ImageHeader | jobs.VideoHeader | np.ndarray]:
    """The header of a file or its pixels, RGB uint8 [height, width, 3] each. Raises `RequestError` and anything."""
    if isinstance(job, jobs.OpenImage):
        opened = open_image(data, job.file.where, job.file.max_pixels)
        yield jobs.ImageHeader(opened.height, opened.width)
    elif isinstance(job, jobs.LoadImage):
        yield _picture(job, data)
    elif isinstance(job, jobs.OpenVideo):
        yield _video_header(job, data)
    else:
        yield from _frames(job, data)


def _picture(job: jobs.LoadImage, data: bytes) -> np.ndarray | jobs.ImageHeader:
    opened = open_image(data, job.file.where, job.file.max_pixels)
    try:
        return np.ascontiguousarray(load_image(opened, job.plan).pixels)
    except OtherSizeError as found:
        if (found.width, found.height) == job.plan.size:
            return jobs.ImageHeader(found.height, found.width)
        raise refusal(job.file.where, "its size differs from the one in its header") from None


def _video_header(job: jobs.OpenVideo, data: bytes) -> jobs.VideoHeader:
    from trifocal.media.decode.animation import Animation, is_animation
    from trifocal.media.decode.video_file import VideoFile

    if is_animation(data):
        moving = Animation(data, job.file.where, job.file.max_pixels)
        return jobs.VideoHeader(moving.num_frames, moving.fps, moving.height, moving.width)
    file = VideoFile(data, job.file.where, job.file.max_pixels)
    return jobs.VideoHeader(file.num_frames, file.fps, file.height, file.width, file.index)


def _frames(job: jobs.LoadVideo, data: bytes) -> Iterator[np.ndarray]:
    from trifocal.media.decode.animation import Animation
    from trifocal.media.decode.video_file import VideoFile

    clip: Animation | VideoFile
    if job.index:
        clip = VideoFile(data, job.file.where, job.file.max_pixels, job.index)
    else:
        clip = Animation(data, job.file.where, job.file.max_pixels)
    for picture in clip.pictures(np.array(job.plan.frames, np.int64)):
        yield np.ascontiguousarray(as_array(scaled(picture, job.plan.decoded)))


def _send(answers: BinaryIO, message: jobs.Answer) -> None:
    write_message(answers, jobs.encode(message))


def main() -> None:
    """Run the process."""
    warnings.simplefilter("ignore")
    few_heaps()
    no_large_leftovers()
    serve(*begin(int(sys.argv[1]), niceness=_NICENESS))


if __name__ == "__main__":
    main()
