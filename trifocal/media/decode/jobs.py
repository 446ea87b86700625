"""What a decoder process is asked and answers: msgspec structs as msgpack on its pipes, never pickle.

A job is a message with the bytes of the file behind it. An answer is any number of messages, a `Frame` with its pixels
behind it, and ends with `Done` or `Refused`. `helpers/process.py` says how messages go through a pipe.
"""

from __future__ import annotations

import msgspec

from trifocal.media.plan import ItemPlan


class File(msgspec.Struct, array_like=True, frozen=True):
    """The file of a job: `num_bytes` of them follow. `where` names it in errors, `timeout_s` is the job's.

    `max_pixels` are those of a picture or of one frame.
    """

    where: str
    num_bytes: int
    max_pixels: int
    timeout_s: float


class OpenImage(msgspec.Struct, tag=True, frozen=True):
    """Read the header of a picture; answered by an `ImageHeader`."""

    file: File


class LoadImage(msgspec.Struct, tag=True, frozen=True):
    """Decode a picture to `plan.decoded`; answered by a `Frame`.

    If it lies on its side and only its pixels told, its `ImageHeader` is the answer: the plan was for another size.
    """

    file: File
    plan: ItemPlan


class OpenVideo(msgspec.Struct, tag=True, frozen=True):
    """Look through a clip; answered by a `VideoHeader`."""

    file: File


class LoadVideo(msgspec.Struct, tag=True, frozen=True):
    """Decode the frames of a clip that `plan` names, to `plan.decoded`; answered by a `Frame` for each.

    `index` is that of its `VideoHeader`.
    """

    file: File
    plan: ItemPlan
    index: bytes


class ImageHeader(msgspec.Struct, tag=True, frozen=True):
    """The size of a picture as displayed."""

    height: int
    width: int


class VideoHeader(msgspec.Struct, tag=True, frozen=True):
    """A clip but for its pixels; size as displayed. `index` goes into `LoadVideo`, so that nothing is looked through
    twice; it is empty for what is no video file."""

    num_frames: int
    fps: float
    height: int
    width: int
    index: bytes = b""


class Frame(msgspec.Struct, tag=True, frozen=True):
    """RGB pixels follow: `height` * `width` * 3 bytes."""

    height: int
    width: int


class Done(msgspec.Struct, tag=True, frozen=True):
    """The job is done. `is_spent`: the process should be replaced."""

    is_spent: bool


class Refused(msgspec.Struct, tag=True, frozen=True):
    """The file cannot be used; otherwise as `Done`."""

    message: str
    is_spent: bool


Job = OpenImage | LoadImage | OpenVideo | LoadVideo
Answer = ImageHeader | VideoHeader | Frame | Done | Refused

_encoder = msgspec.msgpack.Encoder()
_job: msgspec.msgpack.Decoder[Job] = msgspec.msgpack.Decoder(Job)
_answer: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)


def encode(message: Job | Answer) -> bytes:
    """A message as bytes."""
    return _encoder.encode(message)


def decode_job(data: bytes) -> Job:
    """Raises `msgspec.DecodeError`."""
    return _job.decode(data)


def decode_answer(data: bytes) -> Answer:
    """Raises `msgspec.DecodeError`."""
    return _answer.decode(data)
