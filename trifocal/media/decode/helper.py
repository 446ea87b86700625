"""`DecoderHelper`: a decoder process from the outside, in the messages of `jobs.py`."""

from __future__ import annotations

from typing import TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from trifocal.errors import RequestError
from trifocal.helpers.pool import Helper, HelperDiedError
from trifocal.media.decode import jobs

A = TypeVar("A", bound=jobs.Answer)


class DecoderHelper(Helper):
    """A process that may take `memory_bytes` beyond what it needs to start."""

    def __init__(self, memory_bytes: int) -> None:
        super().__init__("trifocal.media.decode.process", str(memory_bytes))

    def ask(self, job: jobs.Job, data: bytes) -> None:
        """Begin a job on a file; its time runs from now on."""
        self.start_job(job.file.timeout_s)
        self.send(jobs.encode(job), data)

    def next(self) -> jobs.Answer:
        """The next message. Raises `RequestError` if the file is refused."""
        try:
            answer = jobs.decode_answer(self.receive())
        except msgspec.DecodeError:  # of which `ValidationError` is one
            raise HelperDiedError("it sent a message of an unknown form") from None
        if isinstance(answer, jobs.Done | jobs.Refused):
            self.end_job(is_spent=answer.is_spent)
        if isinstance(answer, jobs.Refused):
            raise RequestError(answer.message, param="messages")
        return answer

    def answer(self, kind: type[A]) -> A:
        """The next message, which must be of `kind`."""
        answer = self.next()
        if not isinstance(answer, kind):
            raise HelperDiedError("it sent a message of the wrong kind")
        return answer

    def done(self) -> None:
        self.answer(jobs.Done)

    def pixels(self, frame: jobs.Frame, into: NDArray[np.uint8]) -> None:
        """Fill `into` [height, width, 3] with the pixels of a frame, which must have its size."""
        if (frame.height, frame.width) != into.shape[:2]:
            raise HelperDiedError("it sent a picture of the wrong size")
        self.fill(into.data.cast("B"))
