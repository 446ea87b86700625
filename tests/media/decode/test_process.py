"""Decoder processes: bounded, replaced, and gone when nobody needs them; what they die of is one item's refusal."""

from __future__ import annotations

import gc
import io
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from tests.media.samples import LIMITS, clip, encoded, frame_numbers, noise, scaled_to
from trifocal.errors import RequestError
from trifocal.helpers.process import packed
from trifocal.media.decode import jobs
from trifocal.media.decode import process as decoder
from trifocal.media.media import FrameSample
from trifocal.media.reader import MediaReader

WHERE = "messages[0].content[1].image_url"
SMALL = encoded(PIL.Image.fromarray(noise(20, 30)), "PNG")
LARGE = encoded(PIL.Image.new("L", (10_000, 10_000)), "PNG")  # 100 megapixels, half a second or more of decoding


def reader_of(num_decoders: int = 1, **limits: Any) -> closing[MediaReader]:
    return closing(MediaReader(replace(LIMITS, **limits), num_decoders))


def pids(reader: MediaReader) -> list[int]:
    return reader._decoding.pool.pids


def load(reader: MediaReader, data: bytes = SMALL) -> np.ndarray:
    return reader.load(reader.open("image", data, WHERE)).pixels


def refused(reader: MediaReader, data: bytes, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        load(reader, data)
    error = caught.value
    assert error.message.startswith(f"{WHERE}: ") and (error.param, error.status) == ("messages", 400)


def eventually(holds: Any, timeout_s: float = 60.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if holds():
            return True
        time.sleep(0.005)
    return False


def is_gone(pid: int) -> bool:
    """Whether no such process is left, not even as a zombie of ours."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def is_busy(pid: int) -> bool:
    """Whether it has begun to compute something big."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"RssAnon:\s+(\d+)", status)[0]) > 100_000


@contextmanager
def killed_when_busy(reader: MediaReader, times: int, number: signal.Signals) -> Iterator[list[int]]:
    """Send a signal to each of the next decoders, when it is in the middle of a large picture."""
    victims: list[int] = []

    def kill() -> None:
        for _ in range(times):
            assert eventually(lambda: any(pid not in victims and is_busy(pid) for pid in pids(reader)))
            victim = next(pid for pid in pids(reader) if pid not in victims and is_busy(pid))
            victims.append(victim)
            os.kill(victim, number)

    killer = threading.Thread(target=kill)
    killer.start()
    yield victims
    killer.join(120)


# ------------------------------------------------------------------------------------------------- dying


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGABRT])
def test_a_crash_is_one_items_refusal(number: signal.Signals) -> None:
    """A codec that crashes does so again when asked again; the next picture knows nothing of it."""
    with reader_of() as reader:
        opened = reader.open("image", LARGE, WHERE)
        message = rf"the image made the decoder process fail \({number.name}\)"
        with killed_when_busy(reader, 2, number) as victims, pytest.raises(RequestError, match=message) as caught:
            reader.load(opened)
        assert caught.value.status == 400 and len(victims) == 2
        assert load(reader).shape == (20, 30, 3)
        assert all(is_gone(pid) for pid in victims)


def test_one_death_is_survived() -> None:
    """It may have been the system's doing, or another's: the job is done again."""
    with reader_of() as reader:
        opened = reader.open("image", LARGE, WHERE)
        with killed_when_busy(reader, 1, signal.SIGKILL):
            assert reader.load(opened, planner=scaled_to(10, 10)).pixels.shape == (10, 10, 3)


def test_death_between_jobs_is_not_noticed() -> None:
    with reader_of() as reader:
        opened = reader.open("image", SMALL, WHERE)
        [pid] = pids(reader)
        os.kill(pid, signal.SIGKILL)
        assert reader.load(opened).pixels.shape == (20, 30, 3)
        assert pids(reader) != [pid]


# ------------------------------------------------------------------------------------------------- limits


def slow_jpeg() -> bytes:
    """A progressive JPEG whose last scan comes ten thousand times: minutes of work in a few megabytes."""
    data = encoded(PIL.Image.new("L", (4000, 4000), 90), "JPEG", progressive=True)
    scan = data.rindex(b"\xff\xda")
    return data[:scan] + data[scan:-2] * 10_000 + data[-2:]


def test_time() -> None:
    with reader_of(image_decode_timeout=1.0) as reader:
        load(reader)
        assert [reader.limits.timeout(kind) for kind in ("image", "video")] == [1.0, LIMITS.video_decode_timeout]
        before = time.monotonic()
        refused(reader, slow_jpeg(), r"decoding the image took more than 1 s \(--image-decode-timeout\)")
        assert time.monotonic() - before < 30
        assert load(reader).shape == (20, 30, 3)


def test_memory() -> None:
    with reader_of(decode_memory_gib=64 / 1024) as reader:
        refused(reader, LARGE, "more memory than --decode-memory-gib|made the decoder process fail|broken or cut off")
        assert load(reader).shape == (20, 30, 3)
    with reader_of(decode_memory_gib=1) as reader:  # half of the default
        assert load(reader, LARGE).shape == (10_000, 10_000, 3)


def own_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return sum(int(kib) << 10 for kib in re.findall(r"Rss(?:Anon|Shmem):\s+(\d+)", status))


def test_memory_is_given_back_after_a_job() -> None:
    photos = [encoded(PIL.Image.effect_noise(size, 60).convert("RGB"), "JPEG") for size in [(1900, 1400), (900, 700)]]
    with reader_of() as reader:
        load(reader, photos[1])
        [pid] = pids(reader)
        before = own_bytes(pid)
        for photo in photos * 3:
            load(reader, photo)
        assert pids(reader) == [pid] and own_bytes(pid) < before + (8 << 20)


def test_what_the_process_may_do() -> None:
    with reader_of() as reader:
        load(reader)
        [pid] = pids(reader)
        limits = Path(f"/proc/{pid}/limits").read_text()
        soft = {name: value for name, value in re.findall(r"^(Max [a-z ]+?)\s{2,}(\w+)", limits, re.MULTILINE)}
        assert soft["Max core file size"] == soft["Max file size"] == "0"
        assert LIMITS.decode_memory_bytes < int(soft["Max address space"]) < LIMITS.decode_memory_bytes + (2 << 30)
        assert int(soft["Max cpu time"]) < 5 * LIMITS.image_decode_timeout
        open_files = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
        assert not [path for path in open_files if not path.startswith(("pipe:", "/dev/null"))]


def test_answers_come_before_pictures() -> None:
    with reader_of() as reader:
        load(reader)
        [pid] = pids(reader)
        assert os.getpriority(os.PRIO_PROCESS, pid) > os.getpriority(os.PRIO_PROCESS, 0)


# ------------------------------------------------------------------------------------------------- the pool


def test_a_process_serves_many_jobs_and_is_replaced_some_day() -> None:
    with reader_of() as reader:
        load(reader)
        [first] = pids(reader)
        for _ in range(10):
            load(reader)
        assert pids(reader) == [first]
        for _ in range(1000):
            reader.open("image", SMALL, WHERE)
        assert first not in pids(reader) and is_gone(first)


def test_a_process_that_keeps_much_memory_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    job = jobs.OpenImage(jobs.File("here", len(SMALL), 10_000, 30.0))
    monkeypatch.setattr(decoder, "limit_seconds", lambda *_: None)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", PIL.Image.MAX_IMAGE_PIXELS)  # opening a picture changes it
    for held, is_spent in ((127 << 20, False), (129 << 20, True)):
        monkeypatch.setattr(decoder, "own_bytes", lambda held=held: held)
        answers = io.BytesIO()
        decoder.serve(io.BytesIO((packed(jobs.encode(job)) + SMALL) * 2), answers)
        done = packed(jobs.encode(jobs.Done(is_spent)))
        assert answers.getvalue().count(done) == (1 if is_spent else 2) and answers.getvalue().endswith(done)


def test_no_more_processes_than_allowed() -> None:
    seen = set()
    with reader_of(2) as reader, ThreadPoolExecutor(6) as threads:
        for pixels in threads.map(lambda _: load(reader), range(60)):
            assert pixels.shape == (20, 30, 3)
            seen |= set(pids(reader))
    assert 1 <= len(seen) <= 2


def test_close_ends_all_even_in_mid_job() -> None:
    reader = MediaReader(LIMITS, 2)
    opened = reader.open("image", LARGE, WHERE)
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(reader.load, opened)
        assert eventually(lambda: any(is_busy(pid) for pid in pids(reader)))
        ours = pids(reader)
        reader.close()
        with pytest.raises(RequestError):
            running.result(60)
    assert all(is_gone(pid) for pid in ours)
    with pytest.raises(RequestError, match="cannot be decoded at the moment") as caught:
        load(reader)
    assert caught.value.status == 503


def test_a_forgotten_reader_leaves_no_process() -> None:
    reader = MediaReader(LIMITS, 1)
    load(reader)
    [pid] = pids(reader)
    del reader
    gc.collect()
    assert eventually(lambda: is_gone(pid))


ORPHANS = """
import io, sys, threading, time
import PIL.Image
from tests.media.samples import LIMITS, encoded
from tests.media.decode.test_process import slow_jpeg
from trifocal.media.reader import MediaReader
reader = MediaReader(LIMITS, 1)
opened = reader.open("image", slow_jpeg(), "here")
threading.Thread(target=reader.load, args=(opened,), daemon=True).start()
time.sleep(1)
print(*reader._decoding.pool.pids, flush=True)
time.sleep(600)
"""


def test_a_killed_parent_leaves_no_process() -> None:
    """Not even one in the middle of minutes of work."""
    parent = subprocess.Popen([sys.executable, "-c", ORPHANS], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent, parent.stdout:
        [pid] = map(int, parent.stdout.readline().split())
        assert not is_gone(pid)
        parent.kill()
    assert eventually(lambda: is_gone(pid))


def test_a_process_that_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    with reader_of() as reader:
        monkeypatch.setattr(sys, "executable", "/bin/false")
        with pytest.raises(RequestError, match="cannot be decoded at the moment") as caught:
            load(reader)
        assert caught.value.status == 503
        monkeypatch.undo()
        assert load(reader).shape == (20, 30, 3)


def test_clips_and_pictures_share_processes() -> None:
    data = clip(12)
    with reader_of() as reader:
        opened = reader.open("video", data, WHERE, sampler=lambda *_: FrameSample(np.array([0, 3, 11]), 1.0))
        load(reader)
        assert frame_numbers(reader.load(opened).pixels) == [0, 3, 11]
        assert len(pids(reader)) == 1


# ------------------------------------------------------------------------------------------------- bombs


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """`SMALL` with more chunks before its pixels."""
    start = SMALL.index(b"IDAT") - 4
    packed = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    return SMALL[:start] + b"".join(packed) + SMALL[start:]


ZEROS = zlib.compress(bytes(200 << 20))  # 200 KB that unpack to 200 MB


@pytest.mark.parametrize(
    "data",
    [
        png((b"zTXt", b"Comment\0\0" + ZEROS)),
        png((b"iTXt", b"Comment\0\1\0\0\0" + ZEROS)),
        png((b"iCCP", b"profile\0\0" + ZEROS)),
        png(*[(b"zTXt", b"k%d\0\0" % k + zlib.compress(bytes(1_000_000))) for k in range(100)]),
    ],
    ids=["zTXt", "iTXt", "iCCP", "many zTXt"],
)
def test_metadata_bombs(reader: MediaReader, data: bytes) -> None:
    """Refused or passed over, in little memory: never unpacked whole."""
    with reader_of(decode_memory_gib=160 / 1024) as small:
        try:
            assert load(small, data).shape == (20, 30, 3)
        except RequestError as error:
            assert "broken or cut off" in error.message or "cannot be read" in error.message
        assert load(small).shape == (20, 30, 3)


def test_exif_bomb() -> None:
    """Thousands of entries that all name the same megabyte: unpacked one by one they would take gigabytes."""
    count = 5000
    entries = b"".join(struct.pack("<HHII", 0x8000 + k, 7, 1 << 20, 8) for k in range(count))
    exif = b"II*\0\x08\0\0\0" + struct.pack("<H", count) + entries + bytes(4 + (1 << 20))
    with reader_of(decode_memory_gib=256 / 1024, image_decode_timeout=20.0) as reader:
        with_bomb = png((b"eXIf", exif))
        try:
            assert load(reader, with_bomb).shape == (20, 30, 3)
        except RequestError as error:
            assert error.status == 400
        assert load(reader).shape == (20, 30, 3)


def test_a_picture_in_a_picture() -> None:
    """An icon of 16x16 that holds a PNG of another size: the limit is for the one that would be decoded."""
    inner = encoded(PIL.Image.new("RGB", (3000, 2000)), "PNG")
    head = struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inner), 22)
    with reader_of(max_image_pixels=1_000_000) as reader:
        refused(reader, head + inner, "more than 1 megapixels")


@pytest.mark.parametrize("kind", ["PSD", "EPS", "PDF", "SVG", "PCX", "TGA", "FLI", "DDS", "ICNS", "XBM", "FITS", "WMF"])
def test_formats_beyond_the_list(reader: MediaReader, kind: str) -> None:
    """By content: it does not matter what a URL or a header calls it."""
    samples = {
        "PSD": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 4, 4, 8, 3) + bytes(80),
        "SVG": b"<svg xmlns='http://www.w3.org/2000/svg' width='4' height='4'><script>x</script></svg>",
        "FLI": struct.pack("<IHHHH", 200, 0xAF11, 1, 4, 4) + bytes(190),
        "FITS": b"SIMPLE  =                    T".ljust(80) + b"END".ljust(2800),
        "WMF": b"\xd7\xcd\xc6\x9a\0\0" + struct.pack("<hhhhH", 0, 0, 4, 4, 72) + bytes(40),
    }
    if kind in samples:
        data = samples[kind]
    else:
        buffer = io.BytesIO()
        mode = "1" if kind == "XBM" else "RGB"
        PIL.Image.new(mode, (32, 32)).save(buffer, kind)
        data = buffer.getvalue()
    refused(reader, data, "not an image that can be read")
