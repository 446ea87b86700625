"""The engine's end of the socket pair that joins it with the server process: frames of bytes, a length before each.

The pair has no name: nobody else can connect to it, it leaves nothing behind, and each engine process has its own, so
what an old engine still sends cannot be taken for a word of the new one. It closes by itself with the other process.
"""

from __future__ import annotations

import select
import socket

LENGTH_BYTES = 4
_CHUNK = 1 << 20


def frame(data: bytes) -> bytes:
    """`data` as it goes over the socket."""
    return len(data).to_bytes(LENGTH_BYTES, "little") + data


class Channel:
    """Blocking sends, receives that may wait. `EOFError` tells that the server process is gone."""

    def __init__(self, fileno: int) -> None:
        self._socket = socket.socket(fileno=fileno)
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        self._received = bytearray()

    def send(self, data: bytes) -> None:
        """Send a frame, waiting for the server to take in earlier ones if the socket is full."""
        try:
            self._socket.sendall(frame(data))
        except (BrokenPipeError, ConnectionResetError):
            raise EOFError("the server process is gone") from None

    def receive(self, timeout_s: float | None) -> bytes | None:
        """The next frame, None if nothing comes for so long; without a time it waits for it."""
        while (data := self._take()) is None:
            if not self._poll.poll(None if timeout_s is None else timeout_s * 1000):
                return None
            try:
                received = self._socket.recv(_CHUNK)
            except ConnectionResetError:
                received = b""
            if not received:
                raise EOFError("the server process is gone")
            self._received += received
        return data

    def _take(self) -> bytes | None:
        end = LENGTH_BYTES + int.from_bytes(self._received[:LENGTH_BYTES], "little")
        if len(self._received) < max(end, LENGTH_BYTES):
            return None
        data = bytes(self._received[LENGTH_BYTES:end])
        del self._received[:end]
        return data

    def close(self) -> None:
        self._socket.close()
