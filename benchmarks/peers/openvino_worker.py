"""OpenVINO GenAI behind the lines of `contender.WorkerSession`: `... openvino_worker.py FOLDER PROPERTIES`.

It runs under the Python of scripts/build-openvino, which has nothing of Trifocal. One pipeline with continuous batching
answers one question as well as 32 at once; answers have a fixed length, and are greedy unless a question says how to
sample. A token's time is when the step that made it has ended. Decoding and preprocessing of pictures counts, as it
does for a server.
"""

from __future__ import annotations

import base64
import io
import json
import sys
import time
from itertools import count
from typing import Any

import numpy as np
import openvino
import openvino_genai
from PIL import Image

CACHE_GB, BATCHED_TOKENS = 2, 4096


class Generator:
    """A model, its tokenizer and its image processor, as one pipeline."""

    def __init__(self, folder: str, properties: dict[str, Any]) -> None:
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = CACHE_GB
        scheduler.max_num_batched_tokens = BATCHED_TOKENS  # by default it cuts prompts into pieces of 256
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(folder, scheduler, "CPU", properties)
        self._numbers = count()

    def answer(self, questions: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The fields of a `Measured` for each; all begin together."""
        started = time.perf_counter()
        handles = [self._add(question) for question in questions]
        times: list[list[float]] = [[] for _ in handles]
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            now = time.perf_counter()
            for handle, found in zip(handles, times, strict=True):
                while handle.can_read():
                    found += [now for output in handle.read().values() for _ in output.generated_ids]
        return [
            {
                "start": started, "end": found[-1], "chunk_times": found,
                "num_prompt_tokens": handle.get_vlm_perf_metrics().get_num_input_tokens(),
                "num_output_tokens": len(found),
            }
            for handle, found in zip(handles, times, strict=True)
        ]  # fmt: skip

    def _add(self, question: dict[str, Any]) -> Any:
        """Its pictures are computed here, one after the other; the pipeline writes the chat's template around."""
        [message] = question["messages"]
        pictures = [_picture(part) for part in message["content"] if part["type"] == "image_url"]
        text = " ".join(part["text"] for part in message["content"] if part["type"] == "text")
        length = question["output_tokens"]
        config = openvino_genai.GenerationConfig(
            max_new_tokens=length, min_new_tokens=length, ignore_eos=True, do_sample=bool(question["sampling"]),
            **question["sampling"],
        )  # fmt: skip
        return self._pipeline.add_request(next(self._numbers), text, pictures, config)


def _picture(part: dict[str, Any]) -> openvino.Tensor:
    data = base64.b64decode(part["image_url"]["url"].partition(",")[2])
    return openvino.Tensor(np.array(Image.open(io.BytesIO(data)).convert("RGB"))[np.newaxis])


def main() -> None:
    """Serve standard input."""
    answers = sys.stdout
    sys.stdout = sys.stderr  # libraries talk, too
    generator = Generator(sys.argv[1], json.loads(sys.argv[2]))
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        try:
            answer: dict[str, Any] = {"measured": generator.answer(json.loads(line)["questions"])}
        except Exception as error:
            answer = {"error": repr(error)[:400]}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
