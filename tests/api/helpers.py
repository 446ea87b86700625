"""Shared by the server's tests: starting a real server, sample media, the words of a request."""

from __future__ import annotations

import base64
import io
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]
KEY = "a-key-for-tests"
MODEL = "tiny"
MAX_BYTES = 4_000_000
READY_S = 240.0  # for machines that others keep busy; two seconds where nobody does
HELLO = [{"role": "user", "content": "Hello, how are you?"}]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Server:
    """A server process and where it listens."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait_ready(self, scheme: str = "http", verify: ssl.SSLContext | bool = True) -> None:
        url = f"{scheme}://127.0.0.1:{self.port}/health"
        deadline = time.monotonic() + READY_S
        with httpx.Client(timeout=5, verify=verify) as client:  # one: each reads all certificates of the system
            while time.monotonic() < deadline:
                assert self.process.poll() is None, self.log.read_text()
                try:
                    assert client.get(url).status_code == 200
                    return
                except httpx.ConnectError:
                    time.sleep(0.1)
        raise AssertionError(f"not ready after {READY_S} s: {self.log.read_text()}")

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def launch(
    checkpoint: Path, log: Path, *flags: str, port: int | None = None, env: Mapping[str, str] | None = None
) -> Server:
    """`python -m trifocal.entrypoints.openai.api_server` on a tiny checkpoint; not waited for."""
    port = port or free_port()
    command = [
        sys.executable, "-m", "trifocal.entrypoints.openai.api_server", "--model", str(checkpoint),
        "--host", "127.0.0.1", "--port", str(port), "--served-model-name", MODEL, *flags,
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "0.05"}
    environment |= env or {}
    with log.open("wb") as sink:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=sink, stderr=subprocess.STDOUT)
    return Server(process, port, log)


@contextmanager
def running(checkpoint: Path, log: Path, *flags: str, **options: Any) -> Iterator[Server]:
    """A server that is ready, for as long as the block runs."""
    server = launch(checkpoint, log, *flags, **options)
    try:
        server.wait_ready()
        yield server
    finally:
        status = server.stop()
    assert status == 0, log.read_text()


def engine_pid(server: Server) -> int:
    """The server's one child that is an engine; decoder processes may be others."""
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    engines = [pid for pid in children if b"trifocal.engine.process" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(engines) == 1, children
    return int(engines[0])


def shared_bytes(server: Server) -> int:
    """Bytes of pixels in shared memory: the nameless files that the server process holds open."""
    total = 0
    for link in Path(f"/proc/{server.process.pid}/fd").iterdir():
        with suppress(OSError):  # closed meanwhile
            total += link.stat().st_size if os.readlink(link).startswith("/memfd:trifocal-media") else 0
    return total


# ---------------------------------------------------------------------------------------------- media


def picture(width: int = 112, height: int = 84, seed: int = 0, kind: str = "PNG") -> bytes:
    """Coarse noise: compresses well, and each seed is another picture."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.NEAREST).save(file, kind)
    return file.getvalue()


def clip(num_frames: int = 8, size: int = 64) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = size, size, "yuv420p"
        for number in range(num_frames):
            pixels = np.full((size, size, 3), number * 20, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def data_url(data: bytes, mime: str = "image/png") -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def image_part(data: bytes) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(data)}}


def video_part(data: bytes) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": data_url(data, "video/mp4")}}


def ask(*parts: dict[str, Any], text: str = "What is in the image?") -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


# ---------------------------------------------------------------------------------------------- waiting


def metric(http: httpx.Client, name: str) -> float:
    """The value of a metric without other labels than the model's name."""
    lines = http.get("/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{name}{{"))


def eventually(holds: Callable[[], bool], timeout_s: float = 60.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if holds():
            return True
        time.sleep(0.02)
    return False


def all_of(connection: socket.socket) -> bytes:
    """What comes until the server closes."""
    pieces = []
    while piece := connection.recv(1 << 16):
        pieces.append(piece)
    return b"".join(pieces)


def holds_nothing(http: httpx.Client) -> bool:
    names: Sequence[str] = ("num_requests_running", "num_requests_waiting", "kv_blocks_used", "encoder_pinned_bytes")
    return all(metric(http, f"trifocal:{name}") == 0 for name in names)
