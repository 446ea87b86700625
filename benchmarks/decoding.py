"""What decoder processes cost: pictures read through one, against the same work in this process.

    python benchmarks/decoding.py [--sizes 448x448 1920x1080 4000x3000] [--repeat 30]

Each JPEG is opened and loaded, scaled to 448x448 as a model would have it, and whole. Expected before measuring: two
trips over a pipe with the file and one with the pixels, so a millisecond or less for a scaled picture, and 10 ms for
36 MB of pixels that come whole. Bound: 3 ms + 1 ms a megabyte sent; the exit status is 1 beyond.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from PIL import Image

from trifocal.media.decode.image import load_image, open_image
from trifocal.media.decoding import Opened
from trifocal.media.limits import MediaLimits
from trifocal.media.plan import ItemPlan, Size
from trifocal.media.reader import MediaReader, as_it_is

LIMITS = MediaLimits(128_000_000, 4_000_000_000, 2048, 30.0, 120.0, 2 << 30)


def picture(width: int, height: int) -> bytes:
    """A JPEG with smooth and noisy parts."""
    small = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    pixels = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)).copy()
    pixels[: height // 4] = np.random.default_rng(1).integers(0, 256, (height // 4, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=85)
    return file.getvalue()


def median_ms(work: Callable[[], object], repeat: int) -> float:
    """Milliseconds."""
    times = []
    for _ in range(repeat):
        started = time.perf_counter()
        work()
        times.append(1e3 * (time.perf_counter() - started))
    return statistics.median(times)


def main() -> int:
    """Measure and report; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["448x448", "1920x1080", "4000x3000"])
    parser.add_argument("--repeat", type=int, default=30)
    args = parser.parse_args()
    reader = MediaReader(LIMITS, 1)
    started = time.perf_counter()
    reader.open("image", picture(8, 8), "here")
    print(f"starting a process: {1e3 * (time.perf_counter() - started):.0f} ms")
    is_good = True
    for size in args.sizes:
        width, height = map(int, size.split("x"))
        data = picture(width, height)
        for name, target in (("scaled", (448, 448)), ("whole", None)):
            is_good &= _compare(reader, f"{size} {name}", data, target, args.repeat)
    reader.close()
    return 0 if is_good else 1


def _compare(reader: MediaReader, name: str, data: bytes, target: Size | None, repeat: int) -> bool:
    def plan(opened: Opened) -> ItemPlan:
        whole = as_it_is(opened)
        return whole if target is None else replace(whole, decoded=target)

    def inside() -> np.ndarray:
        opened = open_image(data, "here", LIMITS.max_image_pixels)
        return load_image(opened, plan(opened)).pixels

    there = median_ms(lambda: reader.load(reader.open("image", data, "here"), planner=plan), repeat)
    here = median_ms(inside, repeat)
    bound = 3 + (2 * len(data) + inside().nbytes) / 1e6
    print(f"{name}: {there:.1f} ms by a process, {here:.1f} ms here: {there - here:+.1f} ms (bound {bound:.1f})")
    return there - here <= bound


if __name__ == "__main__":
    sys.exit(main())
