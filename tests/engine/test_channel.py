"""The engine's end of the socket pair: frames of any size, whole or not at all, and the end of the other side."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Iterator

import pytest

from trifocal.engine.channel import LENGTH_BYTES, Channel, frame


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, Channel]]:
    ours, theirs = socket.socketpair()
    channel = Channel(theirs.detach())
    with ours:
        yield ours, channel
    channel.close()


def test_frames_arrive_whole_however_they_are_cut(ends: tuple[socket.socket, Channel]) -> None:
    ours, channel = ends
    rng = random.Random(0)
    frames = [rng.randbytes(rng.choice([0, 1, 3, 4, 5, 1000, 3_000_000])) for _ in range(30)]
    stream = b"".join(map(frame, frames))

    def send() -> None:
        at = 0
        while at < len(stream):
            size = rng.choice([1, 3, 7, 4096, 500_000])
            ours.sendall(stream[at : at + size])
            at += size

    sender = threading.Thread(target=send)
    sender.start()
    assert [channel.receive(None) for _ in frames] == frames
    sender.join()
    assert channel.receive(0.0) is None


def test_without_waiting_half_a_frame_is_none(ends: tuple[socket.socket, Channel]) -> None:
    ours, channel = ends
    data = frame(b"hello")
    for byte in data[:-1]:
        assert channel.receive(0.0) is None
        ours.sendall(bytes([byte]))
    assert channel.receive(0.0) is None
    ours.sendall(data[-1:])
    assert channel.receive(0.0) == b"hello"


def test_what_was_sent_before_the_end_is_received_first(ends: tuple[socket.socket, Channel]) -> None:
    ours, channel = ends
    ours.sendall(frame(b"last words") + frame(b"torn")[:-1])
    ours.close()
    assert channel.receive(None) == b"last words"
    with pytest.raises(EOFError):
        channel.receive(0.0)
    with pytest.raises(EOFError):
        channel.send(b"nobody")


def test_sending_waits_for_a_slow_reader(ends: tuple[socket.socket, Channel]) -> None:
    ours, channel = ends
    data = random.Random(1).randbytes(5_000_000)
    sender = threading.Thread(target=channel.send, args=(data,))
    sender.start()
    received = b""
    while len(received) < LENGTH_BYTES + len(data):
        received += ours.recv(1 << 16)
    sender.join()
    assert received == frame(data)
