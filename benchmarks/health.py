"""How quickly /health answers while large pictures are being preprocessed.

    python benchmarks/health.py [--model FOLDER] [--pictures 8] [--size 4000x3000]

All pictures are sent at once as JPEG data URLs; /health is asked every 10 ms until the last one is answered.
Expected before measuring: decoding, resizing and hashing run in threads and mostly without the interpreter's lock, so
only short waits for it remain: a p99 of tens of milliseconds. Bound: p99 at most 100 ms; the exit status is 1 beyond.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import statistics
import sys
import time
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

from trifocal.cli.local_server import LocalServer

BUILT_IN = Path(__file__).parents[1] / "trifocal" / "demo" / "model"
BOUND_MS = 100.0


def picture(seed: int, width: int, height: int) -> str:
    """A JPEG with smooth and noisy parts as a data URL; each seed another one."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (height // 50, width // 50, 3), dtype=np.uint8)
    pixels = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)).copy()
    pixels[: height // 4] = random.integers(0, 256, (height // 4, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


async def ask(client: httpx.AsyncClient, model: str, url: str) -> None:
    """One chat request about one picture."""
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is the image content?"}]
    body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 8}
    (await client.post("/v1/chat/completions", json=body)).raise_for_status()


async def measure(url: str, model: str, pictures: list[str]) -> list[float]:
    """Milliseconds of each /health while `pictures` are worked on."""
    waits = []
    limits = httpx.Limits(max_connections=len(pictures) + 1)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        await client.get("/health")
        work = asyncio.gather(*(ask(client, model, each) for each in pictures))
        while not work.done():
            started = time.perf_counter()
            (await client.get("/health")).raise_for_status()
            waits.append(1e3 * (time.perf_counter() - started))
            await asyncio.sleep(0.01)
        await work
    return waits


def main() -> int:
    """Measure and report; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(BUILT_IN))
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--size", default="4000x3000")
    args = parser.parse_args()
    width, height = map(int, args.size.split("x"))
    pictures = [picture(seed, width, height) for seed in range(args.pictures)]
    with LocalServer([args.model]) as server:
        waits = asyncio.run(measure(server.url, args.model, pictures))
    p99 = statistics.quantiles(waits, n=100)[98]
    print(
        f"{len(waits)} answers of /health during {args.pictures} pictures of {args.size}: "
        f"median {statistics.median(waits):.1f} ms, p99 {p99:.1f} ms, worst {max(waits):.1f} ms "
        f"(bound: p99 {BOUND_MS:g} ms)"
    )
    return 0 if p99 <= BOUND_MS else 1


if __name__ == "__main__":
    sys.exit(main())
