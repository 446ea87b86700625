"""What a decoder process is asked and answers: msgspec structs as msgpack on its pipes, never pickle.

A job is a length, the job, and the bytes of the file. An answer is any number of messages, each after its length and a
`Frame` followed by its pixels, and ends with `Done` or `Refused`.
"""

from __future__ import annotations

import msgspec


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
    """Decode a picture; answered by a `Frame`.

    `size` is the (height, width) to scale it to, `turned_size` the same if it turns out to lie on its side.
    """

    file: File
    size: tuple[int, int]
    turned_size: tuple[int, int]


class OpenVideo(msgspec.Struct, tag=True, frozen=True):
    """Look through a clip; answered by a `VideoHeader`."""

    file: File


class LoadVideo(msgspec.Struct, tag=True, frozen=True):
    """Decode frames of a clip, their `indices` rising, scaled to `size`; answered by a `Frame` for each.

    `index` is that of its `VideoHeader`.
    """

    file: File
    indices: list[int]
    size: tuple[int, int]
    index: bytes


class Ready(msgspec.Struct, tag=True, frozen=True):
    """The process has started."""


class ImageHeader(msgspec.Struct, tag=True, frozen=True):
    """The size of a picture as displayed."""

    height: int
    width: int


class VideoHeader(msgspec.Struct, tag=True, frozen=True):
    """A clip but for its pixels. `index` goes into `LoadVideo`, so that nothing is looked through twice."""

    num_frames: int
    fps: float
    height: int
    width: int
    index: bytes


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
Answer = Ready | ImageHeader | VideoHeader | Frame | Done | Refused

LENGTH_BYTES = 4
_encoder = msgspec.msgpack.Encoder()
_job: msgspec.msgpack.Decoder[Job] = msgspec.msgpack.Decoder(Job)
_answer: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)


def pack(message: Job | Answer) -> bytes:
    """A message after its length."""
    data = _encoder.encode(message)
    return len(data).to_bytes(LENGTH_BYTES, "little") + data


def unpack_job(data: bytes) -> Job:
    """Raises `msgspec.ValidationError`."""
    return _job.decode(data)


def unpack_answer(data: bytes) -> Answer:
    """Raises `msgspec.ValidationError`."""
    return _answer.decode(data)
