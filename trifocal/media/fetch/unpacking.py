"""Bodies of downloads that come compressed though nobody asked: unpacked as they arrive, within limits."""

from __future__ import annotations

import zlib

MAX_RATIO = 100  # what is a picture already hardly packs at all; plain pixels (BMP) may, by this much
FREE_BYTES = 1 << 20  # may be made of any few bytes: drawings in plain pixels pack well, and this is little memory
_GZIP, _ZLIB, _RAW = 31, 15, -15  # zlib's words for gzip's wrapper, its own, and none
_MAX_SHOWN = 40


class UnpackError(Exception):
    """A body that is not unpacked; the message goes on from the URL ("… answered with …")."""


class TooLargeError(Exception):
    """A body of more bytes than allowed."""


class Unpacker:
    """Unpacks the pieces of a body. `encoding` is the header `Content-Encoding`, `max_bytes` how many may come out.

    gzip and deflate, one of them, once. Raises `UnpackError` for any other encoding.
    """

    def __init__(self, encoding: str, max_bytes: int) -> None:
        names = [name for name in encoding.lower().replace(" ", "").split(",") if name not in ("", "identity")]
        if len(names) > 1 or not set(names) <= {"gzip", "x-gzip", "deflate"}:
            shown = encoding[:_MAX_SHOWN]
            raise UnpackError(f"answered with a body packed as {shown!r}; only gzip and deflate are read")
        self._encoding = names[0].removeprefix("x-") if names else None
        self._max_bytes = max_bytes
        self._stream: zlib._Decompress | None = None
        self._received = self._made = 0

    def feed(self, piece: bytes) -> bytes:
        """What a piece of the body unpacks to. Raises `UnpackError`, `TooLargeError` before it takes more memory."""
        self._received += len(piece)
        if self._received > self._max_bytes:
            raise TooLargeError
        if self._encoding is None:
            return piece
        unpacked = []
        try:
            while piece:
                if self._stream is None or self._stream.eof:  # a gzip file may be several, one after the other
                    self._stream = zlib.decompressobj(self._wrapper(piece))
                unpacked.append(self._counted(self._stream.decompress(piece, self._room + 1)))
                piece = self._stream.unused_data
        except zlib.error:
            raise UnpackError(f"answered with a body that is not {self._encoding}, though its header says so") from None
        return b"".join(unpacked)

    def end(self) -> None:
        """The body has ended. Raises `UnpackError` if it is cut off."""
        if self._stream is not None and not self._stream.eof:
            raise UnpackError(f"answered with a {self._encoding} body that is cut off")

    @property
    def _room(self) -> int:
        """Bytes that may still be made of what has come."""
        return min(self._max_bytes, max(FREE_BYTES, MAX_RATIO * self._received)) - self._made

    def _counted(self, unpacked: bytes) -> bytes:
        if self._made + len(unpacked) > self._max_bytes:
            raise TooLargeError
        if len(unpacked) > self._room:
            raise UnpackError(f"answered with a body that unpacks to more than {MAX_RATIO} times its size")
        self._made += len(unpacked)
        return unpacked

    def _wrapper(self, beginning: bytes) -> int:
        """How the stream is wrapped. What is called deflate should be in zlib's wrapper; some servers send it bare."""
        if self._encoding == "gzip":
            return _GZIP
        is_zlib = beginning[0] & 15 == 8 and (len(beginning) < 2 or int.from_bytes(beginning[:2], "big") % 31 == 0)
        return _ZLIB if is_zlib else _RAW
