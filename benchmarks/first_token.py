"""Where the time to the first token of a picture goes before the model sees it, step by step, in one process.

    python -m benchmarks.first_token [--model FOLDER] [--sizes 448x448 4000x3000] [--repeat 30]

The steps are those of a chat request with one picture in a data URL: the body is parsed and checked, the template
rendered (in its helper process) and tokenized, base64 read, the picture's header read and its pixels decoded and scaled
(two trips to a decoder process), patches cut and hashed, and put into shared memory. Network and HTTP are not in it.

Expected before measuring: some ten milliseconds for a PNG of 448x448, of which zlib in the decoder is the largest part;
a JPEG of 12 megapixels costs its decoding. Bound for 448x448: 40 ms; exit status 1 beyond it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path

from benchmarks.decoding import picture
from trifocal.api.openai.schemas import ChatBody
from trifocal.bench.workload import Shape, make_questions
from trifocal.cli.client import bytes_part
from trifocal.config.engine import EngineArgs, resolve
from trifocal.engine.media_store import MediaStore
from trifocal.prompt.builder import PromptBuilder

BUILT_IN = Path(__file__).parents[1] / "trifocal" / "demo" / "model"
BOUND_MS = 40.0


class Stopwatch:
    """Milliseconds by step."""

    def __init__(self) -> None:
        self.taken: dict[str, list[float]] = defaultdict(list)
        self._last = time.perf_counter()

    def start(self) -> None:
        """From here."""
        self._last = time.perf_counter()

    def lap(self, step: str) -> None:
        """`step` has ended."""
        now = time.perf_counter()
        self.taken[step].append(1e3 * (now - self._last))
        self._last = now


def body_of(size: str, number: int) -> bytes:
    """A request with a PNG of 448x448 as other benchmarks draw it, or a JPEG of another size."""
    if size == "448x448":
        [question] = make_questions(Shape(1, 1, 32, 1, num_images=1), f"{size}/{number}")
        messages = question.messages
    else:
        width, height = map(int, size.split("x"))
        messages = [{"role": "user", "content": [bytes_part(picture(width, height)), {"type": "text", "text": "?"}]}]
    return json.dumps({"model": "m", "messages": messages, "max_tokens": 1}).encode()


async def prepare(builder: PromptBuilder, store: MediaStore, body: bytes, watch: Stopwatch) -> None:
    """One request, as the server's threads do it."""
    watch.start()
    chat = ChatBody.model_validate_json(body)
    watch.lap("body")
    rendered = builder.render(chat.messages or [])
    watch.lap("template and tokens")
    [ref] = rendered.media
    data = await builder._fetcher.fetch(ref.source, ref.modality, ref.where)
    watch.lap("base64")
    options = builder._options.of_request(None, None)
    item = builder._planner.open(ref, data, options, None)
    watch.lap("header and plan")
    media = builder._planner.load(item)
    watch.lap("pixels")
    prompt = builder._finish(rendered.token_ids, [media], options, rendered.text, None)
    watch.lap("patches and hash")
    store.share(["one"], prompt)
    watch.lap("shared memory")
    store.release(["one"])


def main() -> int:
    """Measure and report; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(BUILT_IN))
    parser.add_argument("--sizes", nargs="+", default=["448x448", "1920x1080", "4000x3000"])
    parser.add_argument("--repeat", type=int, default=30)
    args = parser.parse_args()
    builder = PromptBuilder(resolve(EngineArgs(model=args.model, mm_processor_cache_gb=0)))
    store, is_good = MediaStore(), True
    for size in args.sizes:
        watch = Stopwatch()
        bodies = [body_of(size, number) for number in range(args.repeat + 1)]

        async def all_of_them(bodies: list[bytes] = bodies, watch: Stopwatch = watch) -> None:
            for body in bodies:
                await prepare(builder, store, body, watch)

        asyncio.run(all_of_them())
        # The first is not counted: helper processes start with it.
        medians = {step: statistics.median(taken[1:]) for step, taken in watch.taken.items()}
        total = sum(medians.values())
        print(f"{size}: {total:.1f} ms: " + ", ".join(f"{step} {ms:.1f}" for step, ms in medians.items()), flush=True)
        is_good &= size != "448x448" or total <= BOUND_MS
    store.close()
    builder.close()
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
