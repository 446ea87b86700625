"""Picture files whose pixels are whole though something around them is not: PNG, and JPEG without its end marker."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator

_PNG = b"\x89PNG\r\n\x1a\n"
_CHUNK_FRAME = 12  # bytes of a chunk beside its body: length, name, checksum
_ANIMATION = (b"acTL", b"fcTL", b"fdAT")
_METADATA = (b"iCCP", b"tEXt", b"zTXt", b"iTXt")
_ORIENTATION_TEXTS = (b"Raw profile type exif", b"XML:com.adobe.xmp")
_MAX_TEXT = 1 << 20  # what PIL unpacks of one text, at most

_END = b"\xff\xd9"
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")  # but stuffed bytes and restarts, which lie within a scan
_RESTART = re.compile(rb"\xff([\xd0-\xd7])")
_BARE_MARKERS = (0x01, 0xD8)
_SEQUENTIAL, _PROGRESSIVE = (0xC0, 0xC1), 0xC2
_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
# What may follow a file that is cut off: three beginnings that differ in their first bits.
_GOES_ON = (b"", b"\xb5\x1c\x6e\x93\x2a" * 40, b"\x4a\xe3\x91\x6c\xd5" * 40)


def mended_png(data: bytes, *, is_clip: bool = False) -> bytes:
    """A PNG for PIL; `data` itself if nothing has to change, or if it is no PNG.

    Dropped is what no pixel depends on and PIL may stumble over: colour profiles and texts of any size, and ancillary
    chunks with a wrong checksum, as libpng does it. A picture that is no clip needs no further frames either. What
    tells the orientation is kept, and put before the pixels.
    """
    if not data.startswith(_PNG):
        return data
    view = memoryview(data)
    early: list[memoryview] = [view[: len(_PNG)]]
    late: list[memoryview] = []
    is_changed, name, end = False, b"", len(_PNG)
    for name, start, end in _chunks(data):
        chunk = view[start:end]
        if not _is_kept(name, chunk, is_clip=is_clip):
            is_changed = True
        elif late and _tells_orientation(name, chunk):
            is_changed = True
            early.append(chunk)
        elif late or name in (b"IDAT", b"fdAT"):
            late.append(chunk)
        else:
            early.append(chunk)
    rest = view[end:]  # behind the last chunk, or a chunk that is cut off
    if name != b"IEND" and not _is_kept(bytes(rest[4:8]), rest, is_clip=is_clip):
        is_changed, rest = True, rest[:0]
    return b"".join([*early, *late, rest]) if is_changed else data


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and end of each whole chunk."""
    start = len(_PNG)
    while start + _CHUNK_FRAME <= len(data):
        end = start + _CHUNK_FRAME + int.from_bytes(data[start : start + 4], "big")
        if end > len(data):
            return
        name = data[start + 4 : start + 8]
        yield name, start, end
        if name == b"IEND":
            return
        start = end


def _is_kept(name: bytes, chunk: memoryview, *, is_clip: bool) -> bool:
    is_critical = not name[:1].islower()
    if is_critical or (is_clip and name in _ANIMATION):
        return True
    if name in _ANIMATION or (name in _METADATA and not _tells_orientation(name, chunk)):
        return False
    return zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")


def _tells_orientation(name: bytes, chunk: memoryview) -> bool:
    """Whether a chunk is EXIF, or a text with EXIF or XMP in it that PIL can unpack."""
    if name == b"eXIf":
        return True
    if name not in _METADATA or len(chunk) > _MAX_TEXT:
        return False
    keyword, _, text = bytes(chunk[8:-4]).partition(b"\0")
    if keyword not in _ORIENTATION_TEXTS:
        return False
    if name == b"zTXt":
        return _unpacks(text[:1], text[1:])
    if name == b"iTXt" and text[:1] == b"\1":
        return _unpacks(text[1:2], text[2:].partition(b"\0")[2].partition(b"\0")[2])
    return True


def _unpacks(method: bytes, packed: bytes) -> bool:
    """Whether PIL can unpack a text: by the one method there is, to no more than it wants to have."""
    if method != b"\0":
        return False
    stream = zlib.decompressobj()
    try:
        stream.decompress(packed, _MAX_TEXT)
    except zlib.error:
        return False
    return not stream.unconsumed_tail


def ended_jpegs(data: bytes) -> Iterator[bytes]:
    """A JPEG that has no end marker, with different ends; nothing if it lacks whole scans.

    Its pixels are whole exactly if all of these decode to the same ones: then nothing is missing, since nothing of
    what follows is used. The first is the file with a plain end marker.
    """
    start_of_scan = _last_scan(data)
    if start_of_scan is None:
        return
    data = data.rstrip(b"\xff")  # the first half of a marker
    restarts = _RESTART.findall(data, start_of_scan)
    first = restarts[-1][0] + 1 if restarts else 0xD0
    following = [bytes([0xFF, 0xD0 + (first + k) % 8]) for k in range(8)]
    for junk in _GOES_ON:
        yield b"".join([data, junk, *(restart + junk for restart in following if junk), _END])


def _last_scan(data: bytes) -> int | None:
    """Where the last scan begins, if all scans are there that the picture needs and no end marker is."""
    missing: dict[int, list[int]] = {}  # by component: for each coefficient how many of its low bits are not known
    position = 2
    scan = None
    while (found := _MARKER.search(data, position)) is not None:
        kind = found[1][0]
        position = found.end()
        if kind in _BARE_MARKERS:
            continue
        length = int.from_bytes(data[position : position + 2], "big")
        segment = data[position + 2 : position + length]
        position += length
        if kind == _END_OF_IMAGE or length < 2 or position > len(data):
            return None
        if kind in _SEQUENTIAL or kind == _PROGRESSIVE:
            missing = {component: [16] * 64 for component in segment[6::3]}
        elif kind == _SCAN:
            scan = position
            _take(segment, missing)
    is_complete = bool(missing) and not any(any(bits) for bits in missing.values())
    return scan if is_complete else None


def _take(segment: bytes, missing: dict[int, list[int]]) -> None:
    """Note what a scan brings, by its header."""
    count = segment[0] if segment else 0
    if len(segment) < 4 + 2 * count:
        return
    first, last, bits = segment[1 + 2 * count : 4 + 2 * count]
    for component in segment[1 : 1 + 2 * count : 2]:
        if component in missing:
            missing[component][first : last + 1] = [bits & 15] * len(missing[component][first : last + 1])
